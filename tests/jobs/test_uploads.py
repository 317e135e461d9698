"""Nothing is sent before it was allowed, and nothing is spent that nobody can count."""

import io
from typing import Any

import pytest
from rich.console import Console

from facescan.datasets import sample
from facescan.errors import EngineUnavailable, UsageError
from jobs import uploads
from jobs.config import resolve
from jobs.passes import passes

LOOPBACK = "http://127.0.0.1:1/v1"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")


def check(**flags: Any) -> str:
    config = resolve({"dataset": "sample", "output_dir": "r", "model": ["gpt-4o"], **flags}, None)
    said = io.StringIO()
    uploads.check(
        config, passes(config, sample.LABEL_SETS), Console(file=said, soft_wrap=True, width=10_000)
    )
    return said.getvalue()


def test_no_picture_is_sent_without_being_allowed_and_the_terms_are_named() -> None:
    with pytest.raises(UsageError, match=r"api\.openai\.com.*--allow-upload.*up to 30 days"):
        check()


def test_a_server_on_this_machine_is_a_server_too() -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1, which needs --allow-upload"):
        check(model_base_url=LOOPBACK)


def test_what_is_allowed_names_the_terms_all_the_same() -> None:
    said = check(allow_upload=True)
    assert "api.openai.com" in said
    assert "up to 30 days" in said


def test_another_server_has_not_the_terms_of_the_cards() -> None:
    said = check(allow_upload=True, model_base_url=LOOPBACK)
    assert "not known" in said
    assert "30 days" not in said


def test_a_model_without_a_price_is_not_asked_unless_told_so() -> None:
    own = {"model": ["hosted:mine"], "model_base_url": LOOPBACK, "protocol": "neutral"}
    with pytest.raises(UsageError, match="--allow-unknown-price"):
        check(allow_upload=True, **own)
    check(allow_upload=True, allow_unknown_price=True, **own)
    with pytest.raises(UsageError, match="--max-cost"):
        check(allow_upload=True, allow_unknown_price=True, max_cost=1.0, **own)


def test_a_missing_key_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EngineUnavailable, match="OPENAI_API_KEY"):
        check(allow_upload=True)


def test_a_model_that_runs_here_needs_no_permission() -> None:
    assert check(model=["fake"]) == ""


@pytest.mark.parametrize(
    ("model", "protocol", "reason"),
    [
        ("gpt-4o", "neutral-score", "answer mode 'score'"),
        ("gpt-4o", "neutral-choice", "answer mode 'choice'"),
        ("tiny-llava", "neutral-joint", "enforces no JSON schema"),
    ],
)
def test_a_question_that_an_engine_cannot_put_is_refused_at_once(
    model: str, protocol: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        check(model=[model], protocol=protocol, allow_upload=True)


def test_a_model_of_no_known_server_asks_for_one() -> None:
    with pytest.raises(UsageError, match="--model-base-url"):
        check(model=["hosted:mine"])
    with pytest.raises(UsageError, match="--model-base-url"):
        check(model=["openai-compatible"], model_base_url=LOOPBACK)
