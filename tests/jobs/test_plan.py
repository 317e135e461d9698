"""What a run would cost is said before it, and is not less than what it costs."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from facescan.run.ledger import Session
from jobs.config import resolve
from jobs.plan import plan
from tests.conftest import MakeShards


def said(folder: Path, **flags: Any) -> str:
    given = {"dataset": "sample", "model": ["gpt-4o"], "output_dir": folder, **flags}
    output = io.StringIO()
    plan(resolve(given, None), Console(file=output, soft_wrap=True, width=10_000))
    return output.getvalue()


def test_a_forecast_names_requests_tokens_cost_and_time(tmp_path: Path) -> None:
    text = said(tmp_path / "run", limit=1000, rpm=500.0)
    assert "gpt-4o: 1,000 requests about race, gender, age, emotion" in text
    assert "sent to api.openai.com" in text
    assert "$2.5 and $10 per million tokens" in text
    assert "at least 2 min at 500 requests a minute" in text
    assert "in all: $" in text
    assert not (tmp_path / "run").exists()


def test_tokens_a_minute_may_be_what_takes_longest(tmp_path: Path) -> None:
    assert "tokens a minute" in said(tmp_path / "run", limit=1000, rpm=5000.0, tpm=10_000.0)


def test_limits_that_nobody_gave_are_asked_for(tmp_path: Path) -> None:
    assert "give --rpm and --tpm" in said(tmp_path / "run")


def test_pictures_of_shards_are_counted_by_their_own_sizes(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    shards = make_shards(5)
    text = said(tmp_path / "run", dataset=str(shards), attributes=["race"])
    assert "5 requests about race" in text


def test_a_budget_that_may_not_do_is_told(tmp_path: Path) -> None:
    assert "may end the run before its end" in said(tmp_path / "run", limit=1000, max_cost=0.5)
    assert "may end the run" not in said(tmp_path / "run", limit=10, max_cost=50.0)


def test_what_was_spent_before_counts(tmp_path: Path) -> None:
    (tmp_path / "run" / "ledger").mkdir(parents=True)
    session = Session(settled_usd=1.25, calls=500)
    (tmp_path / "run" / "ledger" / "a.json").write_text(session.model_dump_json())
    assert "$1.25 spent before" in said(tmp_path / "run", limit=10)


def test_a_model_that_runs_here_costs_nothing(tmp_path: Path) -> None:
    text = said(tmp_path / "run", model=["fake"])
    assert "4,000 requests" in text
    assert "$" not in text
