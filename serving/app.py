"""The online service on Ray Serve: `facescan serve` on one machine, a RayService on a cluster.

    proxy (one a node): front ──> replica: admission ──> engine

A replica holds its engine itself: between the two there is no further hop. Two applications can run
side by side, behind the same front:

    import_path: serving.app:build       route_prefix: /       POST /v1/attributes
    import_path: serving.app:build_raw   route_prefix: /raw    the model itself, OpenAI's protocol

The front has to be there: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serving.app:front, in the
environment of every node. Without it nothing is started.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve import metrics
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.util.metrics import Counter
from starlette.applications import Starlette
from starlette.middleware import Middleware

from facescan.errors import UsageError
from serving import api_keys, service
from serving.admission import Admission
from serving.api import Api
from serving.front import Front, body_bytes
from serving.front import settings as front_settings
from serving.service import Plan, Service, ServiceSettings

FRONT = "serving.app:front"

FRONT_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""By which Ray Serve's proxies find it."""

_TARGET = 0.7
"""Of the requests that a replica's engine has at a time, above which replicas are added."""

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]


def front() -> list[Middleware]:
    """What a proxy puts in front of all applications; called by Ray Serve as a proxy starts."""
    refusals = Counter(
        "facescan_refusals_total",
        description="Requests refused before they reached a replica.",
        tag_keys=("status",),
    )
    return [Middleware(Front, refused=lambda status: refusals.inc(tags={"status": str(status)}))]


class Attributes:
    """One replica."""

    def __init__(self, settings: dict[str, Any], gpus: int) -> None:
        _log_like_ray_serve()
        self._settings = ServiceSettings.model_validate(settings)
        if self._settings.enable_sensitive:
            logging.getLogger("facescan.service").warning(
                "race and emotion are answered; purpose: %s", self._settings.purpose
            )
        self._gpus = gpus
        self._service: Service | None = None

    async def __serve_build_asgi_app__(self) -> Starlette:
        """For Ray Serve, before a replica counts as started: what serves its requests."""
        settings = self._settings
        # An engine takes minutes to load, in which Ray Serve asks how it is going.
        self._service = await asyncio.to_thread(Service, settings, self._gpus)
        admission = Admission(settings.running, settings.waiting)
        return Api(self._service, admission, settings.timeout_s, _RayMeter()).application()

    def check_health(self) -> None:
        """For Ray Serve, which starts a replica again whose engine has died."""
        if self._service is not None:
            self._service.check()

    async def __del__(self) -> None:
        """For Ray Serve, when a replica ends in good order."""
        if self._service is not None:
            await self._service.close()


def build(args: dict[str, Any]) -> serve.Application:
    """The application of `POST /v1/attributes`.

    Args:
        args: the fields of `ServiceSettings`.

    Raises:
        UsageError: they cannot be, or the front is not there.
    """
    settings = _settings(args)
    planned = service.plan(settings)
    gpus = _gpus(settings, planned)
    places = settings.running + settings.waiting
    deployment = serve.deployment(
        serve.ingress()(Attributes),
        name="attributes",
        # A replica refuses what is above its places itself; beyond twice as many the proxy does.
        max_ongoing_requests=2 * places,
        max_queued_requests=2 * places,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=max(1.0, _TARGET * settings.running),
            upscale_delay_s=10,
        ),
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=10,
        health_check_timeout_s=30,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": gpus,
            # Ray would set the number of CPUs too, but only where it is not set already.
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(settings.cpus)}},
        },
    )
    return deployment.bind(settings.model_dump(mode="json"), gpus)


def build_raw(args: dict[str, Any]) -> serve.Application:
    """The model itself, by Ray Serve's own OpenAI-compatible application.

    Args:
        args: as of `build`; `enable_sensitive` has to be true, for nobody can say what a raw model
            is asked.

    Raises:
        UsageError: as `build`, or the model cannot be served so.
    """
    settings = _settings({**args, "raw": True})
    planned = service.plan(settings)
    # vLLM takes seconds to import, and nobody else needs it here.
    from serving import raw_model

    return raw_model.application(settings, planned, _gpus(settings, planned))


def _gpus(settings: ServiceSettings, planned: Plan) -> int:
    """Of one engine."""
    gpus = planned.card.gpus if settings.gpus is None else settings.gpus
    if gpus is None:
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        gpus = planned.card.tensor_parallel_size if has_gpus else 0
    return gpus


def _settings(args: Mapping[str, Any]) -> ServiceSettings:
    if os.environ.get(FRONT_VARIABLE) != FRONT:
        raise UsageError(
            f"the service does not start without its front: set {FRONT_VARIABLE}={FRONT} in the "
            "environment of every node before Ray starts there"
        )
    if not api_keys.read() and not front_settings().keyless:
        raise UsageError(
            f"the service does not start without keys: {api_keys.FILE} names a file of them, in "
            "the environment of every node"
        )
    try:
        settings = ServiceSettings.model_validate(dict(args))
    except ValidationError as error:
        raise UsageError(f"arguments of the service: {error}") from error
    _check_limits(settings)
    return settings


def _check_limits(settings: ServiceSettings) -> None:
    """The front ends what takes too long, or is too large, whatever a replica would do."""
    limits, body = front_settings(), body_bytes(settings.max_image_bytes)
    for name, front_has, wanted in (
        ("TIMEOUT_S", limits.timeout_s, settings.timeout_s),
        ("MAX_BODY_BYTES", limits.max_body_bytes, body),
    ):
        if front_has < wanted:
            raise UsageError(
                f"the front lets requests have {front_has} and the service wants {wanted}: set "
                f"FACESCAN_SERVICE_{name}={wanted} in the environment of every node"
            )


class _RayMeter:
    """See `serving.api.Meter`."""

    def __init__(self) -> None:
        self._requests = metrics.Histogram(
            "facescan_request_seconds",
            description="Requests for attributes, from their headers to their answer.",
            boundaries=_SECONDS,
            tag_keys=("status",),
        )
        self._answers = metrics.Counter(
            "facescan_answers_total",
            description="What the model said.",
            tag_keys=("attribute", "outcome"),
        )
        self._taken = metrics.Gauge(
            "facescan_places_taken", description="Requests that a replica has, waiting or running."
        )

    def request(self, status: int, seconds: float) -> None:
        self._requests.observe(seconds, tags={"status": str(status)})

    def answer(self, attribute: str, outcome: str) -> None:
        self._answers.inc(tags={"attribute": attribute, "outcome": str(outcome)})

    def load(self, taken: int) -> None:
        self._taken.set(taken)


def _log_like_ray_serve() -> None:
    """Into the file of this replica."""
    ours, theirs = logging.getLogger("facescan"), logging.getLogger("ray.serve")
    ours.handlers, ours.level, ours.propagate = theirs.handlers, theirs.level, False
