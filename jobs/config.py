"""The configuration of a run: flags > environment `FACESCAN_*` > YAML file > defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from facescan import images, registry
from facescan.errors import UsageError
from facescan.types import Outcome

RETRIED = (
    Outcome.BAD_IMAGE,
    Outcome.NO_FACE,
    Outcome.PROVIDER_ERROR,
    Outcome.ENGINE_ERROR,
)
"""What `retry` may name: failures of the run. An answer on disk is never asked again."""

Names = Annotated[list[str], NoDecode]
"""A list written as `a,b` on the command line and in the environment, as a list in YAML."""


class RunConfig(BaseSettings):
    """Everything that can be set about a run; unknown keys are errors."""

    model_config = SettingsConfigDict(env_prefix="FACESCAN_", extra="forbid")

    dataset: str
    """`sample`, or the path or URI of ingested shards."""
    split: str | None = None
    limit: int | None = Field(default=None, ge=1)
    """Images asked about; a seeded sample, so that a larger limit contains a smaller."""
    seed: int = Field(default=0, ge=0)
    model: Names
    protocol: str | None = None
    """None: each model's default."""
    attributes: Names = Field(default_factory=list)
    """Empty: what the model answers and the dataset labels; without labels, all it answers."""
    output_dir: str
    """Becomes the run folder: a path, or a URI of an object store."""
    include_path: Annotated[list[Path], NoDecode] = Field(default_factory=list)
    engine: str | None = None
    """Another engine than the model card's."""
    model_base_url: str | None = None
    """Another server than the card's, for models behind an API."""
    allow_upload: bool = False
    """Pictures may be sent to a server, one on this machine included."""
    max_connections: int | None = Field(default=None, ge=1)
    rpm: float | None = Field(default=None, gt=0)
    """Requests per minute that the account allows."""
    tpm: float | None = Field(default=None, gt=0)
    """Tokens per minute that the account allows."""
    max_cost: float | None = Field(default=None, gt=0)
    """US dollars that the run may cost, all its commands together."""
    allow_unknown_price: bool = False
    """Ask models whose price is not known."""
    batch: bool = False
    """Ask models behind an API through their Batch API: cheaper, and within a day."""
    replicas: int | None = Field(default=None, ge=1)
    """Engine actors per model; None: one for each GPU (group), or one on a machine without."""
    gpus: int | None = Field(default=None, ge=1)
    """Of each engine, where the cluster may have to start nodes for them; None: the card's, or as
    many as the model is split over where the cluster has any."""
    ray_address: str | None = None
    """None: a local Ray of the run's own, except inside a submitted Ray job."""
    object_store_mb: int = Field(default=512, ge=128)
    """How much of Ray's object store the streaming of one model's pass may fill."""
    max_image_bytes: int = Field(default=images.Limits().max_bytes, ge=1)
    max_image_pixels: int = Field(default=images.Limits().max_pixels, ge=1)
    retry: Annotated[list[Outcome], NoDecode] = Field(default_factory=list)
    """Requests that ended as one of these are asked again."""
    fail_on_error: float | None = Field(default=None, ge=0)
    """Requests without an answer that the run bears: a fraction where below 1, else a count."""
    score: bool = True
    """Score at the end."""

    @field_validator("model", "attributes", "include_path", "retry", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            return [name.strip() for item in value for name in str(item).split(",") if name.strip()]
        return value

    @field_validator("model")
    @classmethod
    def _named_once(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one model")
        return list(dict.fromkeys(value))

    @field_validator("output_dir", mode="before")
    @classmethod
    def _path_or_uri(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("retry")
    @classmethod
    def _no_answers(cls, value: list[Outcome]) -> list[Outcome]:
        for outcome in value:
            if outcome not in RETRIED:
                raise ValueError(f"{outcome} is not asked again; possible: {', '.join(RETRIED)}")
        return value

    @property
    def object_store_bytes(self) -> int:
        """`object_store_mb` in bytes."""
        return self.object_store_mb * 1024 * 1024

    def limits(self) -> images.Limits:
        """The image limits of this run."""
        return images.Limits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)

    def dump(self) -> str:
        """As YAML, for the run folder; it holds no secrets because no field is one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def resolve(flags: Mapping[str, Any], file: Path | None) -> RunConfig:
    """One validated configuration from the flags that were given, the environment, and a file.

    Raises:
        UsageError: a key is unknown, a value cannot be, or the file is missing or not YAML.
    """

    class _Sources(RunConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings, env_settings, InitSettingsSource(settings_cls, from_file))

    if file is not None and not file.is_file():
        raise UsageError(f"-C {file}: no such file")
    from_file = {} if file is None else registry.fields(file)
    try:
        resolved = _Sources(**flags)
    except ValidationError as error:
        raise UsageError(_explained(error, file)) from error
    return RunConfig.model_construct(**resolved.model_dump())


def _explained(error: ValidationError, file: Path | None) -> str:
    lines = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = ", ".join(RunConfig.model_fields)
            lines.append(f"{file}: unknown key '{name}'; known: {known}")
        elif item["type"] == "missing":
            lines.append(f"--{name.replace('_', '-')} is required")
        else:
            flag = name.split(".")[0].replace("_", "-")
            lines.append(
                f"--{flag}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}"
            )
    return "\n".join(lines)
