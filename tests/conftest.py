"""What several test files share: small shards made on the spot."""

import hashlib
import io
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import ray
from PIL import Image

from facescan.shards import Contents, ShardRow, ShardWriter

if TYPE_CHECKING:
    from tests.s3 import S3

# No test depends on the wall clock: a loaded machine takes longer than Hypothesis' 200 ms.
hypothesis.settings.register_profile("facescan", deadline=None)
hypothesis.settings.load_profile("facescan")

RACES = ("White", "Black", "East Asian", "Indian")


MakeShards = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: what comes last keeps all processes of `make test` busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FACESCAN_LIMIT", "FACESCAN_MODEL", "FACESCAN_DATASET", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def jpeg(seed: int, side: int = 48) -> bytes:
    """A small picture of noise; equal for equal arguments."""
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Makes shards of `count` labelled pictures; `data` replaces the bytes of some."""

    def make(
        count: int = 20, data: Mapping[int, bytes] | None = None, name: str = "shards"
    ) -> Path:
        folder = tmp_path / name
        with ShardWriter(folder, Contents("tiny", {"race": "race-7"})) as writer:
            for number in range(count):
                encoded = (data or {}).get(number, jpeg(number))
                writer.add(
                    ShardRow(
                        image_id=f"image-{number:04d}",
                        image_sha256=hashlib.sha256(encoded).hexdigest(),
                        data=encoded,
                        path=f"{number}.jpg",
                        split="test",
                        labels={"race": RACES[number % len(RACES)]},
                    )
                )
        return folder

    return make


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that need it, with two GPUs that exist on paper only.

    Its workers, and this process as long as it runs, have the key of `tests.provider`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "test-key")
        # Of a command that a test before has run in this process.
        ray.shutdown()
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=2,
            include_dashboard=False,
            object_store_memory=512 * 1024 * 1024,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3"]:
    """One S3 for all tests, which the environment of this process points to."""
    from tests import s3  # takes a second

    with pytest.MonkeyPatch.context() as patch, s3.serving() as (server, environment):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def object_store(s3_server: "S3") -> str:
    """The URI of a folder of a real S3 on loopback, of this test alone."""
    return f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"
