"""The model itself behind OpenAI's protocol: Ray Serve's own application, with a guard before it.

Whoever asks a raw model can ask it anything about a face, so it is served only where race and
emotion are switched on. The guard sees each request before vLLM does:

- pictures come in the request, as `data:` URIs, and are decoded as a run decodes them; vLLM gets
  a PNG of the pixels, never the bytes that a client sent, and follows no address;
- settings by which a client could change how the server makes prompts or pixels are refused.
"""

import asyncio
import base64
import binascii
import hashlib
from typing import Any

from fastapi import Request, Response
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
from ray.llm._internal.serve.engines.vllm import vllm_models
from ray.serve.config import BackpressureConfig
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

from facescan import images
from facescan.decoding import DecodePool, memory_for
from facescan.errors import BadImage
from serving.api import REQUEST_ID
from serving.refusals import Refusal
from serving.service import Plan, ServiceSettings

# Ray copies HF_TOKEN into runtime environments, which its dashboard and API show. Its processes
# have it all the same, from the environment of their node.
vllm_models.ENV_VARS_TO_PROPAGATE.clear()

_PICTURES = 4
"""In one request."""

_NOT_TAKEN = ("mm_processor_kwargs", "chat_template", "chat_template_kwargs", "prompt_embeds")

_KV_CACHE_BYTES = 1 << 30
"""On CPU, where vLLM would take half of the memory."""


class RawModel(OpenAiIngress):  # type: ignore[misc]  # Ray gives it no types
    """See the module's docstring."""

    def __init__(self, llm_deployments: Any, model_cards: Any, *, limits: images.Limits) -> None:
        super().__init__(llm_deployments, model_cards)
        self._limits = limits
        self._decoders = DecodePool(1, memory_bytes=memory_for(limits))

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        try:
            await self._guard(body)
        except Refusal as refusal:
            return _response(refusal, request)
        response: Response = await super().chat(body, request)
        return response

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """`POST /v1/completions`: text alone."""
        try:
            _check(body)
        except Refusal as refusal:
            return _response(refusal, request)
        response: Response = await super().completions(body, request)
        return response

    async def _guard(self, body: ChatCompletionRequest) -> None:
        """Put pictures that we have drawn in the place of those that came.

        Raises:
            Refusal: something in it is not taken (400).
        """
        _check(body)
        parts: list[dict[str, Any]] = []
        for message in body.messages:
            content = message.get("content") if isinstance(message, dict) else ()
            if isinstance(content, list):
                parts += (each for each in content if not isinstance(each, str))
            elif not (content is None or isinstance(content, str)):
                raise _refused("a message's content is text, or a list of parts")
        pictures = [each for each in parts if not _is(each, "text")]
        if len(pictures) > _PICTURES or not all(_is(each, "image_url") for each in pictures):
            raise _refused(f"parts are `text`, and at most {_PICTURES} `image_url`")
        for part in pictures:
            url = await self._redrawn(part.get("image_url"))
            # Nothing else of it: by `uuid` vLLM would take what another client's picture became.
            part.clear()
            part |= {"type": "image_url", "image_url": {"url": url}}

    async def _redrawn(self, given: Any) -> str:
        url = given.get("url") if isinstance(given, dict) else given
        head, _, encoded = str(url).partition(";base64,")
        if not head.startswith("data:image/"):
            raise _refused("a picture is a `data:` URI with base64; addresses are not followed")
        try:
            data = await asyncio.to_thread(base64.b64decode, encoded, validate=True)
        except binascii.Error:
            raise _refused("a picture's base64 cannot be read") from None
        digest = hashlib.sha256(data).hexdigest()
        (checked,) = await asyncio.wrap_future(self._decoders.check([(data, digest)], self._limits))
        if not isinstance(checked, BadImage):
            (pixels,) = await asyncio.wrap_future(self._decoders.decode([checked]))
            if not isinstance(pixels, BadImage):
                side = max(pixels.shape)
                png = await asyncio.to_thread(images.encode, pixels, "png", 0, side)
                return f"data:image/png;base64,{base64.b64encode(png).decode()}"
            checked = pixels
        raise _refused(f"a picture cannot be used: {checked.reason}")


class _Server(LLMServer):  # type: ignore[misc]  # Ray gives it no types
    """Ray's; that it is of this module has the process that it runs in import it."""


def _check(body: Any) -> None:
    given = [name for name in _NOT_TAKEN if getattr(body, name, None)]
    if given:
        raise _refused(f"{', '.join(given)} cannot be set here")


def _is(part: Any, kind: str) -> bool:
    return isinstance(part, dict) and part.get("type") == kind


def _refused(why: str) -> Refusal:
    return Refusal(400, "bad_request", why)


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
            "limit_mm_per_prompt": {"image": _PICTURES},
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
    guarded = make_fastapi_ingress(
        RawModel,
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
