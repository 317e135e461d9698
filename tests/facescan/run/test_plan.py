"""What is left to ask is found from keys alone, and is what sets say it is."""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from facescan import shards, storage
from facescan.run import journal
from facescan.run.plan import MAX_QUESTIONS, Plan, plan
from facescan.run.selection import Selection, sample
from facescan.shards import RowGroup, Shards
from facescan.storage import Storage
from facescan.types import AnswerMode, Decoding, Outcome, Question, request_id
from tests.conftest import MakeShards, jpeg
from tests.facescan.run.replies import reply, written

ALL = Selection()


def question(number: int) -> Question:
    return Question(
        model="m",
        protocol="p",
        attributes=("race",),
        prompt="?",
        labels=("a", "b"),
        answer_mode=AnswerMode.FREE,
        decoding=Decoding(),
        identity=f"question {number}",
    )


QUESTIONS = [question(number) for number in range(3)]


@pytest.fixture(autouse=True)
def _no_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Shards.read

    def refusing(
        self: Shards, row_groups: Iterable[RowGroup], columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        assert "image" not in columns
        return read(self, row_groups, columns)

    monkeypatch.setattr(Shards, "read", refusing)


@pytest.fixture
def replies(tmp_path: Path) -> Storage:
    return storage.at(tmp_path / "replies")


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows in a row group, two row groups in a file."""
    monkeypatch.setattr("facescan.shards.writing.ROW_GROUP_ROWS", 4)
    monkeypatch.setattr("facescan.shards.writing.ROW_GROUPS_PER_SHARD", 2)


def digests(data: Shards) -> list[str]:
    tables = data.read(data.row_groups, ["image_sha256"])
    return [str(digest) for table in tables for digest in table.column(0).to_pylist()]


def image_ids(data: Shards) -> list[str]:
    tables = data.read(data.row_groups, ["image_id"])
    return [str(image) for table in tables for image in table.column(0).to_pylist()]


def asked(found: Plan, data: Shards, questions: Sequence[Question]) -> list[tuple[int, int]]:
    """(row of the dataset, question) of all that is open, as who reads the shards takes it."""
    firsts = [
        sum(group.rows for group in data.row_groups[:number])
        for number in range(len(data.row_groups))
    ]
    pairs = []
    for number, its in found.groups.items():
        assert len(its.rows) > 0
        assert str(its.rows.dtype) == str(its.questions.dtype) == "uint32"
        assert its.rows.tolist() == sorted(set(its.rows.tolist()))
        for row, mask in zip(its.rows.tolist(), its.questions.tolist(), strict=True):
            assert row < data.row_groups[number].rows
            assert 0 < mask < 1 << len(questions)
            pairs += [
                (firsts[number] + row, bit) for bit in range(len(questions)) if mask >> bit & 1
            ]
    assert len(pairs) == found.requests
    return pairs


def key(data: Shards, row: int, asked_: Question) -> str:
    return request_id(asked_.identity, digests(data)[row])


def test_everything_is_open_in_a_new_run(make_shards: MakeShards, replies: Storage) -> None:
    data = shards.open(str(make_shards(10)))
    found = plan(data, ALL, QUESTIONS, replies)
    assert (found.requests, found.done) == (30, {})
    (its,) = found.groups.values()
    assert its.rows.tolist() == list(range(10))
    assert its.questions.tolist() == [0b111] * 10


def test_what_has_a_reply_is_done_and_counted_by_how_it_ended(
    make_shards: MakeShards, replies: Storage
) -> None:
    data = shards.open(str(make_shards(10)))
    race, gender, age = QUESTIONS
    answers = [reply(key(data, row, race)) for row in range(10)]
    errors = [
        reply(key(data, 2, age), None, error_kind=Outcome.BAD_IMAGE),
        reply(key(data, 3, age), None),
    ]
    stranger = reply(request_id("another question", digests(data)[0]))
    written(replies, [*answers, *errors, stranger])
    found = plan(data, ALL, [race, gender, age], replies)
    assert found.done == {"": 10, "bad_image": 1, "engine_error": 1}
    (its,) = found.groups.values()
    assert its.questions.tolist() == [0b110] * 2 + [0b010] * 2 + [0b110] * 6
    journal.compact(replies)
    assert plan(data, ALL, [race, gender, age], replies).done == found.done


def test_only_errors_of_the_kinds_to_ask_again_are_open(
    make_shards: MakeShards, replies: Storage
) -> None:
    data = shards.open(str(make_shards(4)))
    race = QUESTIONS[0]
    written(
        replies,
        [
            reply(key(data, 0, race)),
            reply(key(data, 1, race), None, error_kind=Outcome.BAD_IMAGE),
            reply(key(data, 2, race), None),
            reply(key(data, 3, race), None, minutes=0),
            reply(key(data, 3, race), "White", minutes=9),
        ],
    )
    again = plan(data, ALL, [race], replies, [Outcome.ENGINE_ERROR])
    assert asked(again, data, [race]) == [(2, 0)]
    assert again.done == {"": 2, "bad_image": 1}
    both = plan(data, ALL, [race], replies, [Outcome.ENGINE_ERROR, Outcome.BAD_IMAGE])
    assert asked(both, data, [race]) == [(1, 0), (2, 0)]
    assert both.done == {"": 2}


def test_a_damaged_part_opens_what_it_held(make_shards: MakeShards, replies: Storage) -> None:
    data = shards.open(str(make_shards(4)))
    race = QUESTIONS[0]
    written(replies, [reply(key(data, row, race)) for row in (0, 1)])
    bad = written(replies, [reply(key(data, row, race)) for row in (2, 3)], writer="other")
    assert plan(data, ALL, [race], replies).groups == {}
    replies.write(bad, replies.read(bad)[:-1])
    journal.set_damaged_aside(replies)
    assert asked(plan(data, ALL, [race], replies), data, [race]) == [(2, 0), (3, 0)]


def test_equal_images_are_asked_about_once_at_the_first_row(
    make_shards: MakeShards, replies: Storage
) -> None:
    data = shards.open(str(make_shards(6, data={number: jpeg(0) for number in (1, 3, 5)})))
    found = plan(data, ALL, QUESTIONS[:2], replies)
    assert asked(found, data, QUESTIONS[:2]) == [(row, bit) for row in (0, 2, 4) for bit in (0, 1)]


@pytest.mark.usefixtures("small_files")
def test_row_groups_of_several_files_without_open_rows_are_absent(
    make_shards: MakeShards, replies: Storage
) -> None:
    data = shards.open(str(make_shards(22)))
    assert [group.rows for group in data.row_groups] == [4, 4, 4, 4, 4, 2]
    assert len({group.path for group in data.row_groups}) == 3
    race = QUESTIONS[0]
    left = (5, 6, 21)
    written(replies, [reply(key(data, row, race)) for row in range(22) if row not in left])
    found = plan(data, ALL, [race], replies)
    assert list(found.groups) == [1, 5]
    assert [its.rows.tolist() for its in found.groups.values()] == [[1, 2], [1]]
    written(replies, [reply(key(data, row, race)) for row in left])
    assert plan(data, ALL, [race], replies) == Plan({}, 0, {"": 22})


def test_the_highest_question_has_a_bit_and_one_more_is_a_mistake(
    make_shards: MakeShards, replies: Storage
) -> None:
    data = shards.open(str(make_shards(2)))
    many = [question(number) for number in range(MAX_QUESTIONS)]
    (its,) = plan(data, ALL, many, replies).groups.values()
    assert its.questions.tolist() == [2**MAX_QUESTIONS - 1] * 2
    with pytest.raises(ValueError, match="33 questions in one plan"):
        plan(data, ALL, [*many, question(99)], replies)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("seed", range(25))
def test_a_plan_is_what_sets_say(make_shards: MakeShards, replies: Storage, seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randrange(1, 40)
    pictures = draw.choice([1, count // 2 + 1, 1_000])
    data = shards.open(
        str(make_shards(count, {row: jpeg(draw.randrange(pictures)) for row in range(count)}))
    )
    questions = [question(number) for number in range(draw.randrange(1, 5))]
    selection = sample(image_ids(data), draw.choice([None, 1, count // 2 + 1]), seed)
    again = draw.sample([Outcome.BAD_IMAGE, Outcome.ENGINE_ERROR], draw.randrange(3))

    rows = list(enumerate(zip(selection.taken(image_ids(data)), digests(data), strict=True)))
    first: dict[str, tuple[int, int]] = {}
    for row, (taken, digest) in rows:
        for bit, each in enumerate(questions):
            if taken:
                first.setdefault(request_id(each.identity, digest), (row, bit))
    everything = sorted({request_id(q.identity, d) for _, (_, d) in rows for q in questions})
    ended: dict[str, str] = {}
    replied: list[Any] = []
    for minutes, request in enumerate(draw.choices(everything, k=draw.randrange(len(everything)))):
        kind = draw.choice(["", "bad_image", "engine_error"])
        text = None if kind else "White"
        error_kind = Outcome(kind or "engine_error")
        replied.append(reply(request, text, minutes, error_kind))
        if request not in ended or not kind:
            ended[request] = "" if not kind else ended.get(request) or kind
    draw.shuffle(replied)
    for number in range(3):
        if part := replied[number::3]:
            written(replies, part, writer=f"w{number}")
        if number == draw.randrange(3):
            journal.compact(replies)

    found = plan(data, selection, questions, replies, again)
    is_open = {
        request
        for request in first
        if request not in ended or ended[request] in [str(kind) for kind in again]
    }
    assert set(asked(found, data, questions)) == {first[request] for request in is_open}
    done = [ended[request] for request in first if request not in is_open]
    assert found.done == {kind: done.count(kind) for kind in set(done)}
    assert found.requests + sum(found.done.values()) == len(first)
