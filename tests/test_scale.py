"""The arithmetic of docs/scale.md, and that the page shows it."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import scale
from facescan.shards import writing

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_page_shows_what_the_arithmetic_gives() -> None:
    assert scale.table() in PAGE.read_text()


def test_a_small_dataset_by_hand() -> None:
    # 10,240 pictures of 16 KB: 10 row groups of 1,024, so 2 shards; 40,960 requests.
    model = scale.Model("a model", bound=10.24, share=0.5)
    found = scale.needs(scale.Dataset("small", 10_240, gpus=2), model, gpu_hour=9.0)
    assert (found.groups, found.files, found.requests, found.parts) == (10, 2, 40_960, 21)
    assert found.gpu_hours == pytest.approx(2_000 / 3_600)
    assert found.hours == pytest.approx(1_000 / 3_600)
    assert found.dollars == pytest.approx(9.0 * 2_000 / 3_600, abs=0.01)


def test_row_groups_are_as_ingest_cuts_them() -> None:
    per_group = writing.ROW_GROUP_BYTES // scale.IMAGE_BYTES
    found = scale.needs(scale.Dataset("one more", per_group + 1, 1), scale.MODELS[0])
    assert (found.groups, found.files) == (2, 1)


def test_everything_grows_with_the_images() -> None:
    model = scale.MODELS[0]
    small, large = (scale.needs(scale.Dataset("", n, 1), model) for n in (10**6, 10**8))
    for one, hundred in (
        (small.gpu_hours, large.gpu_hours),
        (small.driver_hours, large.driver_hours),
        (small.memory - scale.DRIVER.bytes_fixed, large.memory - scale.DRIVER.bytes_fixed),
    ):
        assert hundred == pytest.approx(100 * one, rel=1e-3)


def test_the_first_limit_is_where_the_driver_s_memory_is_full() -> None:
    model = scale.MODELS[0]
    at = int(
        scale.limits(model)["the driver needs more than the head's 32 GiB"]
        .split()[0]
        .replace(",", "")
    )
    assert scale.needs(scale.Dataset("", at, 1), model).memory == pytest.approx(
        scale.HEAD_BYTES, rel=0.05
    )


def test_gpus_shorten_the_time_and_not_the_cost() -> None:
    dataset, model = scale.DATASETS[2], scale.MODELS[1]
    one = scale.needs(replace(dataset, gpus=1), model)
    eight = scale.needs(replace(dataset, gpus=8), model)
    assert one.hours == pytest.approx(8 * eight.hours)
    assert one.dollars == eight.dollars
