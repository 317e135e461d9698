"""The same rows again: the same questions by their keys, in another order and other batches."""

from pathlib import Path

import pytest

from facescan import models, shards
from facescan.run.selection import image_ids, sample
from facescan.types import Question
from jobs import repeats
from jobs.config import resolve
from jobs.passes import passes
from tests.conftest import MakeShards


def questions(model: str) -> list[Question]:
    flags = {"model": [model], "dataset": "unused", "output_dir": "unused"}
    return [q for each in passes(resolve(flags, None), {}) for q in each.questions]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("tiny-paligemma", ["max_num_seqs 1", "max_num_seqs 16", "max_num_seqs 64"]),
        ("clip-vit-large-patch14", ["batch_size 1", "batch_size 16", "batch_size 64"]),
        ("facescan-paligemma", ["max_num_seqs 1", "max_num_seqs 16", "max_num_seqs 64"]),
    ],
)
def test_a_repeat_asks_the_same_questions_in_batches_of_another_size(
    model: str, says: list[str], tmp_path: Path
) -> None:
    card = models.load(model)
    for number, text in enumerate(says, start=1):
        repeat = repeats.of(card, model, number, tmp_path / str(number))
        assert repeat.says == f"rows shuffled, {text}"
        option, _, size = text.partition(" ")
        assert models.load(repeat.model).engine_options == {
            **card.engine_options,
            option: int(size),
        }
        assert questions(repeat.model) == questions(model)


@pytest.mark.parametrize("model", ["fake", "gpt-4o"])
def test_a_model_whose_engine_has_no_batches_is_asked_as_it_is(model: str, tmp_path: Path) -> None:
    repeat = repeats.of(models.load(model), model, 1, tmp_path)
    assert (repeat.model, repeat.says) == (model, "rows shuffled")


def test_the_selected_rows_are_shuffled_and_otherwise_as_they_were(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    data = shards.open(str(make_shards(50)))
    selection = sample(image_ids(data), 30, seed=3)
    places = [tmp_path / str(seed) for seed in (1, 2)]
    for seed, place in enumerate(places, start=1):
        repeats.shuffle(data, selection, seed, place)
    original, *shuffled = (
        [
            row
            for table in opened.read(opened.row_groups, opened.schema.names)
            for row in table.to_pylist()
        ]
        for opened in (data, *(shards.open(str(place)) for place in places))
    )
    taken = selection.taken([row["image_id"] for row in original])
    rows = [row for row, wanted in zip(original, taken, strict=True) if wanted]
    assert len(rows) == 30
    assert rows != shuffled[0] != shuffled[1] != rows
    for each in shuffled:
        assert sorted(each, key=lambda row: row["image_id"]) == rows
    before = (places[0] / shards.MANIFEST).stat().st_mtime_ns
    repeats.shuffle(data, selection, 1, places[0])
    assert (places[0] / shards.MANIFEST).stat().st_mtime_ns == before
