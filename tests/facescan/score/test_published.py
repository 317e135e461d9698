"""Published figures beside the metrics.json of runs."""

from typing import Any

from facescan import published
from facescan.score.published import Beside, beside

PAPER = published.load("arxiv-2410.24148")


def interval(value: float | None) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "ci_low": None, "ci_high": None}
    return {"value": value, "ci_low": value - 0.01, "ci_high": value + 0.01}


def score(model: str, **changed: Any) -> dict[str, Any]:
    """A score of Table 11 as metrics.json has it, with other values for some keys."""
    classes = [
        {"label": "Male", "support": 5792, "precision": 0.9, "recall": 0.8, "f1": 0.7},
        {"label": "Female", "support": 5162, "precision": 0.5, "recall": 0.6, "f1": 0.4},
    ]
    found = {
        "model": model,
        "dataset": "fairface.025",
        "split": "val",
        "attribute": "gender",
        "protocol": "paper-gpt",
        "answer_mode": "free",
        "asked_label_set": "gender-2",
        "view": "gender-2",
        "complete": True,
        "n": 10954,
        "accuracy": interval(0.91),
        "balanced_accuracy": interval(0.7),
        "macro_f1": interval(0.55),
        "classes": [
            {name: interval(v) if isinstance(v, float) else v for name, v in each.items()}
            for each in classes
        ],
    }
    return found | changed


def given(*scores: dict[str, Any]) -> list[Beside]:
    return beside(PAPER, [{"version": 2, "scores": list(scores)}])


def of(rows: list[Beside], table: str, model: str) -> list[Beside]:
    return [row for row in rows if (row.table, row.model) == (table, model)]


def test_each_printed_figure_of_a_model_has_the_measured_one_beside_it() -> None:
    rows = of(given(score("other"), score("gpt-4o")), "table11", "GPT-4o")
    assert [(r.metric, r.printed, r.published) for r in rows] == [
        ("accuracy", "95.9", 0.959),
        ("macro_precision", "96", 0.96),
        ("macro_recall", "96", 0.96),
        ("macro_f1", "96", 0.96),
    ]
    measured = [r.measured for r in rows if r.measured is not None]
    assert [(m.value, m.low, m.high, m.place) for m in measured] == [
        (0.91, 0.91 - 0.01, 0.91 + 0.01, "/accuracy"),
        (0.7, None, None, ""),
        (0.7, 0.7 - 0.01, 0.7 + 0.01, "/balanced_accuracy"),
        (0.55, 0.55 - 0.01, 0.55 + 0.01, "/macro_f1"),
    ]
    assert {(m.document, m.score) for m in measured} == {(0, 1)}
    assert all((r.title, r.page) == ("Table 11", "20-25") for r in rows)


def test_rows_that_were_not_run_are_published_only() -> None:
    rows = given(score("gpt-4o"))
    assert {row.table for row in rows} == {"table11", "table17"}
    unrun = [row for row in rows if row.model != "GPT-4o"]
    assert len(unrun) == 8 * 4 + 2 * 3
    assert all(row.measured is None for row in unrun)
    (gemini,) = {row.not_runnable for row in of(rows, "table11", "Gemini 1.5 Flash")}
    assert gemini == "Gemini 1.5 Flash is no longer served."


def test_classes_are_found_by_label() -> None:
    rows = of(given(score("facescan-paligemma")), "table17", "FaceScanPaliGemma")
    assert [
        (r.label, r.metric, r.measured.value, r.measured.place) for r in rows if r.measured
    ] == [
        ("Male", "precision", 0.9, "/classes/0/precision"),
        ("Male", "recall", 0.8, "/classes/0/recall"),
        ("Male", "f1", 0.7, "/classes/0/f1"),
        ("Female", "precision", 0.5, "/classes/1/precision"),
        ("Female", "recall", 0.6, "/classes/1/recall"),
        ("Female", "f1", 0.4, "/classes/1/f1"),
    ]


def test_a_class_that_is_never_answered_counts_as_0_in_the_mean_precision() -> None:
    classes = score("gpt-4o")["classes"]
    classes[1]["precision"] = interval(None)
    row = of(given(score("gpt-4o", classes=classes)), "table11", "GPT-4o")[1]
    assert row.measured is not None
    assert row.measured.value == 0.45
    classes[1]["support"] = 0
    row = of(given(score("gpt-4o", classes=classes)), "table11", "GPT-4o")[1]
    assert row.measured is not None
    assert row.measured.value == 0.9


def test_other_datasets_splits_and_views_are_not_compared() -> None:
    for changed in (
        {"dataset": "sample"},
        {"split": "train"},
        {"view": "gender-3"},
        {"attribute": "race"},
        {"dataset": "utkface.wild"},  # its split is `all`
    ):
        assert given(score("gpt-4o", **changed)) == []


def differences(table: str, model: str, one: dict[str, Any]) -> set[str]:
    """What is said of a run beyond what is said of any."""
    (theirs,) = {row.differences for row in of(given(one), table, model)}
    return set(theirs)


def test_what_differs_in_the_run_is_said() -> None:
    always = differences("table11", "GPT-4o", score("gpt-4o"))
    assert (
        "The snapshot is not stated; the card names gpt-4o-2024-08-06, the oldest still served."
        in (always)
    )
    other = differences(
        "table11",
        "GPT-4o",
        score("gpt-4o", protocol="neutral-joint", n=500, complete=False, dataset="fairface.125"),
    )
    assert other - always == {
        "Asked by the protocol neutral-joint; not paper-gpt.",
        "Scored on 500 images; the paper's test set has 10,954.",
        "The run is not complete: some requests failed and are in no score.",
        "The padding is not stated; 224 pixels fit the release of 0.25, and this is 1.25.",
    }


def race(model: str, protocol: str, asked: str, view: str) -> dict[str, Any]:
    return score(
        model, attribute="race", protocol=protocol, asked_label_set=asked, view=view, classes=[]
    )


def test_label_sets_that_differ_are_said() -> None:
    found = differences("table08", "GPT-4o", race("gpt-4o", "neutral-joint", "race-7", "race-6"))
    assert "Asked in race-7 and viewed in race-6; paper-gpt asks in race-6." in found
    found = differences("table10", "GPT-4o", race("gpt-4o", "neutral-joint", "race-7", "race-7"))
    assert "Asked by the protocol neutral-joint; the paper's wording is not known." in found
    found = differences(
        "table08",
        "FaceScanPaliGemma",
        race("facescan-paligemma", "facescan-paligemma", "race-7", "race-6"),
    )
    assert not any(text.startswith("Asked") for text in found)


def test_every_score_of_a_row_is_given() -> None:
    rows = of(
        beside(
            PAPER,
            [
                {"scores": [score("paligemma-3b-mix-224", protocol="paper-paligemma")]},
                {"scores": [score("sample"), score("paligemma-3b-pt-224", protocol="neutral")]},
            ],
        ),
        "table11",
        "PaliGemma pre-trained",
    )
    assert [
        (r.measured.document, r.measured.score, r.measured.model)
        for r in rows
        if r.measured and r.metric == "accuracy"
    ] == [(0, 0, "paligemma-3b-mix-224"), (1, 1, "paligemma-3b-pt-224")]
