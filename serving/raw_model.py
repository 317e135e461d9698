"""The model itself behind OpenAI's protocol: Ray Serve's own application, with a guard before it.

Whoever asks a raw model can ask it anything about a face, so it is served only where race and
emotion are switched on. `serving.raw_guard` sees each request before vLLM does.
"""

from typing import Any

from fastapi import Request, Response
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
from ray.llm._internal.serve.core.ingress.ingress import init
from ray.llm._internal.serve.engines.vllm import vllm_models
from ray.serve.config import BackpressureConfig
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

from facescan import images
from serving.api import REQUEST_ID, BehindFront
from serving.raw_guard import PICTURES, Guard
from serving.refusals import Refusal
from serving.service import Plan, ServiceSettings

# Ray copies HF_TOKEN into runtime environments, which its dashboard and API show. Its processes
# have it all the same, from the environment of their node.
vllm_models.ENV_VARS_TO_PROPAGATE.clear()

_KV_CACHE_BYTES = 1 << 30
"""On CPU, where vLLM would take half of the memory."""


class RawModel(OpenAiIngress):  # type: ignore[misc]  # Ray gives it no types
    """See the module's docstring."""

    def __init__(self, llm_deployments: Any, model_cards: Any, *, limits: images.Limits) -> None:
        super().__init__(llm_deployments, model_cards)
        self._guard = Guard(limits)

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        try:
            self._guard.check(body)
            await self._guard.redraw(body.messages)
        except Refusal as refusal:
            return _response(refusal, request)
        response: Response = await super().chat(body, request)
        return response

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """`POST /v1/completions`: text alone."""
        try:
            self._guard.check(body)
        except Refusal as refusal:
            return _response(refusal, request)
        response: Response = await super().completions(body, request)
        return response


class _Server(LLMServer):  # type: ignore[misc]  # Ray gives it no types
    """Ray's; that it is of this module has the process that it runs in import it."""


def _response(refusal: Refusal, request: Request) -> Response:
    request_id = request.headers.get(REQUEST_ID, "")
    return Response(refusal.body(request_id), refusal.status, refusal.headers())


def application(settings: ServiceSettings, planned: Plan, gpus: int) -> serve.Application:
    """Ray Serve's OpenAI-compatible application of this model, behind `RawModel`."""
    card, checkpoint = planned.card, planned.catalogue.checkpoint
    assert checkpoint is not None, "`service.plan` refuses such models"
    places = settings.running + settings.waiting
    replicas = {"min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas}
    config = LLMConfig(
        model_loading_config={
            "model_id": card.name,
            "model_source": checkpoint.path,
            "tokenizer_source": checkpoint.processor or checkpoint.path,
        },
        accelerator_config={"kind": "gpu" if gpus else "cpu"},
        engine_kwargs={
            "dtype": card.dtype,
            "revision": checkpoint.revision,
            "tensor_parallel_size": card.tensor_parallel_size,
            "enforce_eager": True,
            "limit_mm_per_prompt": {"image": PICTURES},
            # No name that is anybody's: the guard lets none through, and vLLM follows none.
            "allowed_media_domains": ["pictures.invalid"],
            "trust_remote_code": False,
            **({} if gpus else {"kv_cache_memory_bytes": _KV_CACHE_BYTES}),
        },
        deployment_config={
            "autoscaling_config": replicas,
            "max_ongoing_requests": 2 * places,
            "graceful_shutdown_timeout_s": settings.drain_s,
        },
    )
    server = build_llm_deployment(config, deployment_cls=_Server)
    # As `build_openai_app`, which has more endpoints: some take addresses of pictures.
    behind_front = init()
    behind_front.add_middleware(BehindFront)
    guarded = make_fastapi_ingress(
        RawModel,
        app=behind_front,
        endpoint_map={
            "models": lambda app: app.get("/v1/models"),
            "chat": lambda app: app.post("/v1/chat/completions"),
            "completions": lambda app: app.post("/v1/completions"),
        },
    )
    return serve.deployment(
        guarded,
        name="raw",
        max_ongoing_requests=places,
        max_queued_requests=places,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=settings.drain_s,
        ray_actor_options={"num_cpus": 0},
    ).bind(
        {config.model_id: server},
        {config.model_id: to_model_metadata(config.model_id, config)},
        limits=settings.limits(),
    )
