"""Every dataset file, found by its name, is held to what it declares and to its own examples."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from facescan import attributes, datasets, registry
from facescan.datasets import Dataset, Example, Source
from facescan.errors import UnknownNameError, UsageError

NAMES = datasets.names()
EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{number}")
    for name in NAMES
    for number, example in enumerate(datasets.load(name).examples)
]


def assert_reads(dataset: Dataset[Any], example: Example, folder: Path) -> None:
    for name, contents in example.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    options = dataset.options.model_validate(example.options)
    found = dataset.described(options).rows(Source(folder, None, options))
    assert tuple(found) == example.rows


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_declares_what_is_there(name: str) -> None:
    dataset = datasets.load(name)
    assert dataset.name == name
    assert dataset.description
    assert "\n" not in dataset.description
    for attribute, label_set in dataset.label_sets.items():
        assert attributes.load(attribute).label_set(label_set).labels
    assert dataset.examples or not dataset.needs_source


def test_every_dataset_is_found_by_the_name_of_its_file() -> None:
    assert {name.partition(".")[0] for name in NAMES} == set(registry.names(datasets.PACKAGE))
    assert len(set(NAMES)) == len(NAMES)


def test_of_a_family_a_member_is_named() -> None:
    assert datasets.load("utkface.wild").name == "utkface.wild"
    with pytest.raises(UsageError, match=r"say which: utkface\.aligned, utkface\.wild"):
        datasets.load("utkface")
    for name, known in (("utkface.wide", r"utkface\.aligned, utkface\.wild"), ("table.x", "table")):
        with pytest.raises(UnknownNameError, match=f"unknown dataset '{name}'; known: {known}"):
            datasets.load(name)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_a_dataset_reads_its_own_examples(name: str, example: Example, tmp_path: Path) -> None:
    assert_reads(datasets.load(name), example, tmp_path)


@pytest.mark.parametrize("name", [n for n in NAMES if not datasets.load(n).needs_source])
def test_a_dataset_that_is_drawn_is_the_same_every_time(name: str) -> None:
    dataset = datasets.load(name)
    source = Source(None, None, dataset.options())
    first = list(islice(dataset.rows(source), 3))
    assert len(first) == 3
    assert first == list(islice(dataset.rows(source), 3))


def test_the_documented_dataset_file_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    dataset = names["DATASET"]
    assert dataset.examples
    for example in dataset.examples:
        assert_reads(dataset, example, tmp_path)
