"""Runs that ask by batches, against a strict provider on loopback: billed once, killed anywhere."""

import io
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

import serving.batches
from facescan import storage
from facescan.errors import (
    AccessDenied,
    BudgetExhausted,
    FacescanError,
    QuotaExhausted,
    RunStopped,
    UsageError,
)
from facescan.run import journal, ledger, manifest
from facescan.run.folder import existing
from jobs import abort, batch_records
from jobs.config import resolve
from jobs.run import run
from jobs.verify import verify_run
from serving import estimate
from serving.tokens import HostedOptions, Price
from tests.conftest import MakeShards, jpeg
from tests.jobs import batch_steps
from tests.jobs.batch_steps import STEPS
from tests.provider.running import LINE, Batches, Fault, Provider, provider_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IMAGES = 12


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with provider_server() as running:
        yield running


@pytest.fixture
def provider(server: Provider, monkeypatch: pytest.MonkeyPatch) -> "Seen":
    """The server of all tests, as this one sees it: in order, and nothing waited for."""
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    monkeypatch.setattr(serving.batches, "pause", lambda seconds: None)
    server.configure(faults=[], script=[], batches=Batches(**Batches().model_dump()))
    return Seen(server)


class Seen:
    """What a provider has done since."""

    def __init__(self, provider: Provider) -> None:
        self.base_url = provider.base_url
        self.configure = provider.configure
        self._provider = provider
        self._before = provider.bill()
        self._known = set(provider.stats()["batches"])

    def billed(self, what: str = "usd") -> float:
        return float(self._provider.bill()[what] - self._before[what])

    def batches(self) -> list[dict[str, Any]]:
        found = self._provider.stats()["batches"]
        return [each for name, each in found.items() if name not in self._known]

    def files_left(self) -> list[str]:
        files = self._provider.stats()["files"].values()
        return [str(each["filename"]) for each in files if not each["deleted"]]


def settings(provider: Seen, folder: Path, shards: Path, **flags: Any) -> dict[str, Any]:
    return {
        "model": ["gpt-4o"],
        "model_base_url": provider.base_url,
        "dataset": str(shards),
        "output_dir": str(folder),
        "allow_upload": True,
        "batch": True,
    } | flags


def asked(provider: Seen, folder: Path, shards: Path, **flags: Any) -> str:
    """Run; what it said."""
    said = io.StringIO()
    run(resolve(settings(provider, folder, shards, **flags), None), Console(file=said, width=500))
    return said.getvalue()


def replies(folder: Path) -> dict[str, dict[str, Any]]:
    place = storage.at(str(folder / "replies"))
    found = journal.reader(place, journal.files(place).names).read_all().to_pylist()
    assert len({row["request_id"] for row in found}) == len(found)
    return {row["request_id"]: row for row in found}


def outcomes(folder: Path) -> Counter[str]:
    files = (folder / "predictions").glob("*.parquet")
    return Counter(row["outcome"] for file in files for row in pq.read_table(file).to_pylist())


def spent(folder: Path) -> float:
    found = ledger.spent(storage.at(str(folder / "ledger")))
    assert not found.unknown
    return found.total_usd


def check_sound(provider: Seen, folder: Path) -> None:
    """Nothing is left at the provider, the ledger says what the bill does, and the run is whole."""
    assert not provider.files_left()
    assert spent(folder) == pytest.approx(provider.billed())
    assert not batch_records.at(existing(str(folder))).open()
    said = io.StringIO()
    assert verify_run(str(folder), Console(file=said, width=500)), said.getvalue()
    assert not list((folder / "batches").glob(".*"))


def test_a_run_by_batches_answers_everything_at_half_the_price(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    said = asked(provider, folder, make_shards(IMAGES))
    found = replies(folder)
    assert len(found) == IMAGES == provider.billed("lines")
    assert all(row["raw_response"] and row["error_kind"] is None for row in found.values())
    assert sum(row["cost_usd"] for row in found.values()) == pytest.approx(provider.billed())
    assert provider.billed("batch_usd") == provider.billed() > 0
    assert provider.billed("calls") == 0
    assert outcomes(folder)["pending"] == 0
    known = manifest.read(existing(str(folder)))
    assert all(each.answered_by is not None for each in known.combinations)
    (worker,) = known.workers.values()
    assert worker["batch"] == provider.batches()[0]["id"]
    assert "completed, 12 of 12 requests" in said
    check_sound(provider, folder)


def test_the_same_command_again_submits_nothing(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    asked(provider, folder, shards)
    said = asked(provider, folder, shards)
    assert "nothing is asked" in said
    assert len(provider.batches()) == 1


def test_a_batch_has_no_more_requests_than_one_may_have(
    provider: Seen, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.batches, "MOST_REQUESTS", 5)
    provider.configure(batches=Batches(max_requests=5))
    folder = tmp_path / "run"
    asked(provider, folder, make_shards(IMAGES))
    assert [each["request_counts"]["total"] for each in provider.batches()] == [5, 5, 2]
    assert len(replies(folder)) == IMAGES
    check_sound(provider, folder)


def test_models_are_never_mixed_in_a_file(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    asked(provider, folder, make_shards(IMAGES), model=["gpt-4o", "gpt-4o-mini"])
    assert [each["status"] for each in provider.batches()] == ["completed", "completed"]
    assert len(replies(folder)) == 2 * IMAGES
    check_sound(provider, folder)


def test_an_unusable_image_costs_nothing(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    asked(provider, folder, make_shards(IMAGES, {3: b"no picture", 4: jpeg(4)[:300]}))
    assert outcomes(folder)["bad_image"] == 2
    assert provider.billed("lines") == IMAGES - 2
    check_sound(provider, folder)


def test_what_expires_is_asked_again_and_given_up_after_a_few_batches(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    provider.configure(batches=Batches(ends="expired", expired_share=0.4))
    folder = tmp_path / "run"
    asked(provider, folder, make_shards(IMAGES))
    found = provider.batches()
    # Which lines expire is drawn from their ids, so it is always the same ones.
    answered = found[0]["request_counts"]["completed"]
    assert 0 < answered < IMAGES
    assert [each["request_counts"]["total"] for each in found] == [
        IMAGES,
        IMAGES - answered,
        IMAGES - answered,
    ]
    assert provider.billed("lines") == answered
    assert outcomes(folder)["provider_error"] == IMAGES - answered
    lost = [row for row in replies(folder).values() if row["error_kind"]]
    assert all("batch_expired" in row["error"] and row["attempts"] == 3 for row in lost)
    check_sound(provider, folder)


def test_lines_that_fail_for_what_may_pass_are_asked_again(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    provider.configure(faults=[Fault(kind="error", error="500", times=4, at=LINE)])
    folder = tmp_path / "run"
    asked(provider, folder, make_shards(IMAGES))
    assert [each["request_counts"]["total"] for each in provider.batches()] == [IMAGES, 4]
    assert {row["error_kind"] for row in replies(folder).values()} == {None}
    assert not provider.files_left()
    # Whether a 500 is billed nobody can say, so the ledger says more.
    assert spent(folder) > provider.billed()


def test_refusals_are_replies_and_asked_once(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    provider.configure(faults=[Fault(kind="answer", shape="refusal", times=3, at=LINE)])
    folder = tmp_path / "run"
    asked(provider, folder, make_shards(IMAGES))
    assert len(provider.batches()) == 1
    assert outcomes(folder)["refused"] == 3
    check_sound(provider, folder)


def test_no_money_left_stops_the_run_and_keeps_what_was_answered(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    provider.configure(faults=[Fault(kind="error", error="insufficient_quota", times=5, at=LINE)])
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    with pytest.raises(QuotaExhausted):
        asked(provider, folder, shards)
    assert len(replies(folder)) == IMAGES - 5
    asked(provider, folder, shards)
    assert len(replies(folder)) == IMAGES
    check_sound(provider, folder)


def test_the_budget_cuts_batches_and_what_turns_out_cheaper_makes_room_for_more(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    with pytest.raises(BudgetExhausted):
        asked(provider, folder, shards, max_cost=0.0035)
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped"
    assert "--max-cost" in status["reason"]
    assert len(provider.batches()) > 1
    assert 0 < len(replies(folder)) < IMAGES
    assert 0 < provider.billed() <= 0.0035
    asked(provider, folder, shards, max_cost=1.0)
    assert len(replies(folder)) == IMAGES == provider.billed("lines")
    check_sound(provider, folder)


def test_a_queue_that_is_full_makes_batches_smaller(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    failed = {
        "id": "batch_full",
        "object": "batch",
        "status": "failed",
        "errors": {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit"}]},
    }
    provider.configure(script=[{"body": json.dumps(failed), "at": "GET /batches/{id}"}])
    folder = tmp_path / "run"
    said = asked(provider, folder, make_shards(IMAGES))
    assert "at most 6 requests" in said
    assert [each["request_counts"]["total"] for each in provider.batches()][1:] == [6, 6]
    assert len(replies(folder)) == IMAGES == provider.billed("lines")
    check_sound(provider, folder)


def test_lines_nobody_asked_for_and_doubles_are_counted_and_named(
    provider: Seen, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = serving.batches.read

    def with_strays(*given: Any) -> Iterator[serving.batches.Result]:
        found = list(read(*given))
        yield from [*found, found[0]]
        yield serving.batches.Result("stray", None, False, "")

    monkeypatch.setattr(serving.batches, "read", with_strays)
    folder = tmp_path / "run"
    said = asked(provider, folder, make_shards(IMAGES))
    assert "1 lines of results name no request of it: stray" in said
    assert "1 lines of results are about requests that had one" in said
    (name,) = (folder / "batches").glob("*.json")
    known = json.loads(name.read_text())
    assert (known["unknown"], known["doubled"], known["replied"]) == (1, 1, IMAGES)
    assert len(replies(folder)) == IMAGES


def test_a_provider_that_fails_now_and_then_is_asked_again_without_doubling(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    places = ("POST /files", "POST /batches", "GET /batches/{id}", "GET /files/{id}/content")
    provider.configure(
        faults=[
            fault
            for at in places
            for fault in (
                Fault(kind="error", error="503", calls=[0], at=at),
                Fault(kind="reset", processed=True, calls=[1], at=at),
            )
        ]
    )
    folder = tmp_path / "run"
    asked(provider, folder, make_shards(IMAGES))
    assert len(provider.batches()) == 1
    assert len(replies(folder)) == IMAGES == provider.billed("lines")
    check_sound(provider, folder)


def test_a_refused_upload_leaves_nothing_that_single_calls_would_have_to_wait_for(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    provider.configure(script=[{"status": 404, "body": "{}", "at": "POST /files"}])
    folder, shards = tmp_path / "run", make_shards(2)
    with pytest.raises(AccessDenied, match="Files and Batch API"):
        asked(provider, folder, shards)
    assert spent(folder) == 0
    asked(provider, folder, shards)
    check_sound(provider, folder)


def test_a_refused_batch_leaves_no_file(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    provider.configure(script=[{"status": 400, "body": "{}", "at": "POST /batches"}])
    folder = tmp_path / "run"
    with pytest.raises(FacescanError, match="creation of a batch"):
        asked(provider, folder, make_shards(2))
    assert spent(folder) == 0
    assert not provider.files_left()


def test_a_provider_that_cannot_be_reached_stops_the_run_which_can_be_continued(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    provider.configure(faults=[Fault(kind="error", error="503", at="POST /batches")])
    folder, shards = tmp_path / "run", make_shards(2)
    with pytest.raises(RunStopped, match="failed 6 times"):
        asked(provider, folder, shards)
    provider.configure(faults=[])
    asked(provider, folder, shards)
    assert len(provider.batches()) == 1
    check_sound(provider, folder)


def test_a_lost_file_of_answers_counts_as_paid_and_its_requests_are_asked_again(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    provider.configure(script=[{"status": 404, "body": "{}", "at": "GET /files/{id}/content"}])
    folder = tmp_path / "run"
    said = asked(provider, folder, make_shards(IMAGES))
    assert "its answers are lost, and count as paid" in said
    assert len(replies(folder)) == IMAGES
    assert provider.billed("lines") == 2 * IMAGES
    assert spent(folder) >= provider.billed()


def test_looks_at_the_provider_grow_rarer_while_nothing_changes(
    provider: Seen, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(serving.batches, "pause", waits.append)
    provider.configure(batches=Batches(polls=(2, 20, 1)))
    asked(provider, tmp_path / "run", make_shards(2))
    assert waits[:4] == [5.0, 7.5, 5.0, 7.5], "a new state begins anew"
    assert sorted(waits[2:22]) == waits[2:22]
    assert max(waits) == 300.0
    assert waits[22] == 5.0
    assert len(waits) == 23, "what is over is not waited for"


def test_models_that_run_here_are_not_asked_by_batches(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="engine fake"):
        asked(provider, tmp_path / "run", make_shards(2), model=["fake"])


def test_a_price_for_batches_has_to_be_known(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    card = yaml.safe_load((ROOT / "facescan/models/gpt-4o.yaml").read_text())
    del card["engine_options"]["price"]["batch"]
    (tmp_path / "dear").mkdir()
    (tmp_path / "dear/facescan.yaml").write_text(yaml.safe_dump(card))
    folder, shards, flags = tmp_path / "run", make_shards(IMAGES), {"model": str(tmp_path / "dear")}
    with pytest.raises(UsageError, match="no price for batches"):
        asked(provider, folder, shards, **flags)
    asked(provider, folder, shards, **flags, allow_unknown_price=True)
    # They count at the price of single calls, which is never less than what they cost.
    assert spent(folder) == pytest.approx(2 * provider.billed())


def test_a_batch_whose_price_ends_before_it_is_collected_costs_what_it_was_made_at(
    provider: Seen, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = datetime.now(UTC).date()
    card = yaml.safe_load((ROOT / "facescan/models/gpt-4o.yaml").read_text())
    # The day after, so that a test at midnight has a price.
    card["engine_options"]["price"]["until"] = str(today + timedelta(days=1))
    (tmp_path / "ending").mkdir()
    (tmp_path / "ending/facescan.yaml").write_text(yaml.safe_dump(card))
    folder, shards, model = tmp_path / "run", make_shards(IMAGES), str(tmp_path / "ending")
    stop_waiting(provider, folder, shards, model=model)
    price = estimate.price

    def later(options: HostedOptions, day: date | None = None) -> Price | None:
        return price(options, day or today + timedelta(days=2))

    monkeypatch.setattr(estimate, "price", later)
    asked(provider, folder, shards, model=model, allow_unknown_price=True)
    found = replies(folder).values()
    assert sum(row["cost_usd"] for row in found) == pytest.approx(provider.billed())
    check_sound(provider, folder)


def test_no_batch_is_made_after_the_price_has_ended(
    provider: Seen, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.batches, "MOST_REQUESTS", IMAGES // 2)
    create, ended = serving.batches.Desk.create, False
    price = estimate.price

    def last(desk: serving.batches.Desk, *given: Any) -> serving.batches.Batch:
        nonlocal ended
        ended = True
        return create(desk, *given)

    def until_then(options: HostedOptions, day: date | None = None) -> Price | None:
        return None if ended and day is None else price(options, day)

    monkeypatch.setattr(serving.batches.Desk, "create", last)
    monkeypatch.setattr(estimate, "price", until_then)
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    with pytest.raises(QuotaExhausted, match="its price has ended"):
        asked(provider, folder, shards)
    assert len(provider.batches()) == 1
    ended = False
    monkeypatch.setattr(serving.batches.Desk, "create", create)
    asked(provider, folder, shards)
    assert len(replies(folder)) == IMAGES == provider.billed("lines")
    check_sound(provider, folder)


def test_a_batch_that_may_have_been_created_is_neither_written_off_nor_made_again(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    lost = Fault(kind="reset", processed=True, calls=[0], at="POST /batches")
    unseen = Fault(kind="error", error="insufficient_quota", at="GET /batches")
    provider.configure(faults=[lost, unseen])
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    with pytest.raises(RunStopped, match="the same command again finds out"):
        asked(provider, folder, shards)
    (left,) = batch_records.at(existing(str(folder))).open()
    money = ledger.spent(storage.at(str(folder / "ledger")))
    assert money.reserved_usd == pytest.approx(left.reserved_usd)
    assert left.reserved_usd > 0
    provider.configure(faults=[])
    asked(provider, folder, shards)
    assert len(provider.batches()) == 1
    assert len(replies(folder)) == IMAGES == provider.billed("lines")
    check_sound(provider, folder)


def test_nothing_is_uploaded_that_may_not_be(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--allow-upload"):
        asked(provider, tmp_path / "run", make_shards(2), allow_upload=False)
    assert not provider.batches()


class Child:
    """The command in a process of its own, which a fault may strike (`tests.jobs.batch_steps`)."""

    def __init__(self, provider: Seen, folder: Path, shards: Path) -> None:
        self._log = folder.parent / "steps"
        self._flags = ["run", "--no-score"]
        for name, value in settings(provider, folder, shards).items():
            self._flags.append(f"--{name.replace('_', '-')}")
            if value is not True:
                self._flags.append(value if isinstance(value, str) else ",".join(value))

    def ended(self, step: str = "", how: signal.Signals = signal.SIGKILL) -> tuple[int | None, str]:
        """Exit code (negative for a signal), and what it said."""
        # Forked from a process that has imported everything, which takes seconds.
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload(["openai.types", "tests.jobs.batch_steps"])
        environment = {"OPENAI_API_KEY": os.environ["OPENAI_API_KEY"], "COLUMNS": "500"}
        process = forks.Process(
            target=batch_steps.main, args=(self._flags, environment, self._log, step, how)
        )
        process.start()
        process.join(120)
        return process.exitcode, self._log.with_suffix(".said").read_text()

    @property
    def steps(self) -> list[str]:
        return self._log.read_text().splitlines()


def test_the_steps_at_which_runs_are_killed_are_all_that_there_are(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    child = Child(provider, tmp_path / "run", make_shards(IMAGES))
    code, said = child.ended()
    assert code == 0, said
    assert tuple(dict.fromkeys(child.steps)) == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_a_run_killed_at_any_step_is_continued_without_a_second_submission(
    step: str, provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    code, said = Child(provider, folder, shards).ended(step)
    assert code == -signal.SIGKILL, said
    asked(provider, folder, shards)
    assert len(provider.batches()) == 1
    assert len(replies(folder)) == IMAGES == provider.billed("lines")
    check_sound(provider, folder)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_what_goes_on_and_the_same_command_continues(
    stop: signal.Signals, provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    provider.configure(batches=Batches(polls=(1, 1_000_000, 0)))
    code, said = Child(provider, folder, shards).ended("before look", stop)
    assert code == 3
    assert "1 batch at the provider with 12 requests: this goes on without the command" in said
    assert "may cost up to $0.0" in said
    assert "facescan abort" in said
    assert outcomes(folder) == {"pending": IMAGES}
    with pytest.raises(UsageError, match="paid twice"):
        asked(provider, folder, shards, batch=False)
    provider.configure(batches=Batches(polls=(0, 0, 0)))
    asked(provider, folder, shards)
    assert len(provider.batches()) == 1
    assert len(replies(folder)) == IMAGES
    check_sound(provider, folder)


def test_aborting_cancels_keeps_what_was_answered_and_deletes_what_was_sent(
    provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    provider.configure(batches=Batches(polls=(1, 1_000_000, 0)))
    assert Child(provider, folder, shards).ended("before look", signal.SIGTERM)[0] == 3
    assert provider.files_left()
    abort.abort(str(folder), Console(file=io.StringIO()))
    assert provider.batches()[0]["status"] == "cancelled"
    assert len(replies(folder)) == IMAGES / 2 == provider.billed("lines")
    assert outcomes(folder)["pending"] == IMAGES / 2
    check_sound(provider, folder)
    provider.configure(batches=Batches(polls=(0, 0, 0)))
    asked(provider, folder, shards)
    assert len(replies(folder)) == IMAGES == provider.billed("lines")
    check_sound(provider, folder)


@pytest.mark.parametrize("step", ["after written made", "after upload", "after create"])
def test_aborting_a_killed_run_leaves_nothing_at_the_provider(
    step: str, provider: Seen, make_shards: MakeShards, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    Child(provider, folder, make_shards(IMAGES)).ended(step)
    abort.abort(str(folder), Console(file=io.StringIO()))
    check_sound(provider, folder)


def test_a_batch_cancelled_by_somebody_else_stops_the_run(
    provider: Seen, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = serving.batches.Desk.create

    def cancelled(desk: serving.batches.Desk, *given: Any) -> serving.batches.Batch:
        found = create(desk, *given)
        desk.cancel(found.id)
        return found

    monkeypatch.setattr(serving.batches.Desk, "create", cancelled)
    folder, shards = tmp_path / "run", make_shards(IMAGES)
    with pytest.raises(RunStopped, match="not by this run"):
        asked(provider, folder, shards)
    assert len(replies(folder)) == IMAGES / 2
    check_sound(provider, folder)


def stop_waiting(provider: Seen, folder: Path, shards: Path, **flags: Any) -> None:
    """Run until there is nothing to do but wait, and stop then."""

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.batches, "pause", stop)
        with pytest.raises(KeyboardInterrupt):
            asked(provider, folder, shards, **flags)


def test_a_run_on_drawn_faces_can_be_aborted_too(provider: Seen, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    provider.configure(batches=Batches(polls=(1, 1_000_000, 0)))
    stop_waiting(provider, folder, Path("sample"), limit=IMAGES)
    folder = folder.rename(tmp_path / "moved")
    abort.abort(str(folder), Console(file=io.StringIO()))
    assert outcomes(folder)["pending"] == 4 * IMAGES / 2, "four attributes in each request"
    check_sound(provider, folder)


def test_a_run_folder_on_an_object_store_keeps_its_batches_there(
    provider: Seen, make_shards: MakeShards, object_store: str
) -> None:
    shards = make_shards(IMAGES)
    flags: dict[str, Any] = {"output_dir": object_store}
    stop_waiting(provider, Path(), shards, **flags)
    (waiting,) = batch_records.at(existing(object_store)).open()
    assert waiting.count == IMAGES
    asked(provider, Path(), shards, **flags)
    assert len(provider.batches()) == 1
    assert verify_run(object_store, Console(file=io.StringIO()))
    assert not provider.files_left()


def test_the_key_stands_nowhere_in_the_run_folder(
    provider: Seen, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-canary-0123456789abcdef"
    provider.configure(keys={"test-key": "account", key: "account"})
    monkeypatch.setenv("OPENAI_API_KEY", key)
    folder = tmp_path / "run"
    said = asked(provider, folder, make_shards(IMAGES))
    files = [each for each in folder.rglob("*") if each.is_file()]
    assert files
    assert not [each for each in files if b"canary" in each.read_bytes()]
    assert "canary" not in said
