"""`metrics.json` with everything in it that docs/scores.md names, drawn by a seeded generator."""

import json
import random
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from facescan.report import scores_file
from facescan.report.entries import Run
from facescan.report.provenance import Asked, Provenance
from facescan.score.intervals import rate
from facescan.score.output import NOTE, VERSION
from facescan.types import Outcome

RACES = (
    *("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian"),
    "Middle Eastern",
)
AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
GENDERS = ("Male", "Female")
LABELS = {"race": ("race-7", RACES), "age": ("age-9", AGES), "gender": ("gender-2", GENDERS)}

Json = dict[str, Any]


def interval(hits: int, trials: int) -> Json:
    found = rate(hits, trials)
    return {"value": found.value, "ci_low": found.low, "ci_high": found.high}


def around(value: float, half: float) -> Json:
    return {"value": value, "ci_low": value - half, "ci_high": value + half}


def score(
    attribute: str,
    model: str,
    *,
    seed: int = 0,
    per_class: int = 100,
    skill: float = 0.8,
    protocol: str = "neutral",
    dataset: str = "sample",
    split: str = "test",
    view: str | None = None,
    groups: Sequence[tuple[str, ...]] = (),
    calibrated: bool = False,
) -> Json:
    """One entry of `scores`; with `skill` as the chance of a right answer."""
    draw = random.Random(f"{seed} {attribute} {model} {view}")
    name, labels = LABELS[attribute]
    outcomes = [each for each in Outcome if each not in (Outcome.ANSWERED, Outcome.SPURIOUS)]
    columns = [f"label:{label}" for label in labels]
    columns += ["outside_view", *(f"outcome:{outcome}" for outcome in outcomes)]
    counts = [[0] * len(columns) for _ in labels]
    for position in range(len(labels)):
        for _ in range(per_class + 10 * position):
            luck = draw.random()
            if luck < skill:
                column = position
            elif luck < skill + 0.02:
                column = columns.index("outcome:refused")
            elif luck < skill + 0.03:
                column = columns.index("outcome:unparsed")
            else:
                near = position + draw.choice((-1, 1, 1, 2))
                column = min(len(labels) - 1, max(0, near))
            counts[position][column] += 1
    rows = sum(map(sum, counts))
    answered = sum(sum(row[: len(labels)]) for row in counts)
    correct = sum(counts[i][i] for i in range(len(labels)))
    found: Json = {
        "model": model,
        "dataset": dataset,
        "split": split,
        "attribute": attribute,
        "protocol": protocol,
        "answer_mode": "free",
        "asked_label_set": name,
        "view": view or name,
        "complete": True,
        "n": rows,
        "n_answered": answered,
        "n_correct": correct,
        "n_outside_view": 0,
        "n_run_failures": 0,
        "n_excluded": 7 if view else 0,
        "n_unlabelled": 0,
        "accuracy": interval(correct, rows),
        "accuracy_answered": interval(correct, answered),
        "accuracy_worst": correct / rows,
        "accuracy_best": correct / rows,
        "balanced_accuracy": around(correct / rows, 0.015),
        "macro_f1": around(correct / rows - 0.01, 0.016),
        "intervals": {
            "method": "wilson",
            "subjects": None,
            "remark": "rows are taken as independent: no subjects are known.",
        },
        "outcomes": dict.fromkeys(map(str, Outcome), 0)
        | {
            "answered": answered,
            **{str(o): sum(row[columns.index(f"outcome:{o}")] for row in counts) for o in outcomes},
        },
        "outcome_rates": {
            name: interval(n, rows)
            for name in ("refused", "unparsed")
            if (n := sum(row[columns.index(f"outcome:{name}")] for row in counts))
        },
        "zero_support": [],
        "classes": [_class(labels, counts, position) for position in range(len(labels))],
        "confusion": {"targets": list(labels), "columns": columns, "counts": counts},
        "ordinal": None,
        "calibration": _calibration(draw) if calibrated else None,
        "groups": [_grouping(draw, by, skill, attribute, calibrated) for by in groups],
        "unlabelled": {"outcomes": dict.fromkeys(map(str, Outcome), 0), "answers": {}},
    }
    if attribute == "age":
        found["ordinal"] = _ordinal(rows)
    return found


def _ordinal(rows: int) -> Json:
    return {
        "off_by_one": interval(rows - rows // 20, rows),
        "mae_bins": around(0.31, 0.02),
        "quadratic_kappa": around(0.912, 0.01),
        "mae_years": around(3.4, 0.2),
    }


def _of_group(label: str, hits: int, n: int) -> Json:
    """A class of which the group has a third of its rows."""
    return {
        "label": label,
        "support": n // 3,
        "n_predicted": n // 3,
        "precision": interval(hits // 3, n // 3),
        "recall": interval(hits // 3, n // 3),
        "f1": around(hits / n, 0.05),
    }


def _class(labels: Sequence[str], counts: Sequence[Sequence[int]], position: int) -> Json:
    support = sum(counts[position])
    predicted = sum(row[position] for row in counts)
    hits = counts[position][position]
    return {
        "label": labels[position],
        "support": support,
        "n_predicted": predicted,
        "precision": interval(hits, predicted),
        "recall": interval(hits, support),
        "f1": around(2 * hits / (support + predicted), 0.03),
    }


def _calibration(draw: random.Random) -> Json:
    bins = []
    for number in range(10):
        n = 0 if number < 2 else 20 * number + draw.randrange(10)
        hits = round(n * (number + 0.3) / 10)
        bins.append(
            {
                "low": number / 10,
                "high": (number + 1) / 10,
                "n": n,
                "confidence": (number + 0.6) / 10 if n else None,
                "accuracy": interval(hits, n),
            }
        )
    return {"n": sum(b["n"] for b in bins), "ece": 0.034, "brier": 0.187, "bins": bins}


GROUPS = {"gender": GENDERS, "race": RACES, "age": AGES}


def _grouping(
    draw: random.Random, by: tuple[str, ...], skill: float, attribute: str, calibrated: bool
) -> Json:
    cells: list[Json] = []
    labels, ordered = LABELS[attribute][1], attribute == "age"
    for number, group in enumerate(product(*(GROUPS[name] for name in by))):
        n = 12 if number == 3 else draw.randrange(60, 600)
        hits = round(n * (skill - (0.2 if number == 5 else draw.random() * 0.05)))
        suppressed = n < 20
        nothing: Json = {"value": None, "ci_low": None, "ci_high": None}
        accuracy = nothing if suppressed else interval(hits, n)
        wide: Json = {**accuracy}
        if not suppressed:
            wide["ci_low"] = max(0.0, wide["ci_low"] - 0.03)
            wide["ci_high"] = min(1.0, wide["ci_high"] + 0.03)
        cells.append(
            {
                "group": list(group),
                "n": n,
                "n_answered": n - 2,
                "n_run_failures": 0,
                "subjects": None,
                "suppressed": suppressed,
                "few": n < 100,
                "accuracy": accuracy,
                "simultaneous": wide,
                "accuracy_answered": accuracy,
                "balanced_accuracy": nothing if suppressed else around(hits / n, 0.02),
                "macro_f1": nothing if suppressed else around(hits / n - 0.01, 0.02),
                "outcome_rates": {} if suppressed else {"refused": interval(2, n)},
                "selection_rates": {},
                "classes": [] if suppressed else [_of_group(each, hits, n) for each in labels],
                "confusion": {},
                "ordinal": _ordinal(n) if ordered and not suppressed else None,
                "calibration": None if suppressed or not calibrated else _calibration(draw),
            }
        )
    shown = [cell for cell in cells if not cell["suppressed"]]
    worst = min(shown, key=lambda cell: cell["accuracy"]["value"])
    gap = {"corrected": 0.014, "ci_low": -0.01, "ci_high": 0.04}
    several = len(cells) > 4
    return {
        "by": list(by),
        "source": "labels",
        "min_cell": 20,
        "n_ungrouped": 0,
        "cells": cells,
        "pooled": interval(round(1000 * (skill - 0.02)), 1000),
        "equal_rate": {
            "method": "chi-square",
            "statistic": 31.27,
            "df": len(cells) - 1,
            "p": 0.0002 if several else 0.41,
            "p_holm": 0.0004 if several else 0.82,
        },
        "largest_gap": {"value": 0.052, **gap},
        "ratio": {"value": 0.93, "corrected": 0.97, "ci_low": 0.9, "ci_high": 1.0},
        "worst": {"group": worst["group"], "accuracy": worst["simultaneous"]},
        "equalized_odds_difference": 0.061,
        "demographic_parity_difference": 0.083,
        "outcome_tests": {"refused": {"method": "permutation", "p": 0.21, "p_holm": 0.42}},
        "findings": ["Accuracy is not equal in these groups."] if several else [],
        "remarks": ["1 group has fewer than 20 rows."] if several else [],
    }


def comparison(a: str, b: str, attribute: str, value: float) -> Json:
    """One entry of `comparisons`."""
    side = {"protocol": "neutral", "answer_mode": "free", "asked_label_set": LABELS[attribute][0]}
    return {
        "a": {"run": "", "model": a, **side},
        "b": {"run": "", "model": b, **side},
        "attribute": attribute,
        "dataset": "sample",
        "split": "test",
        "view": LABELS[attribute][0],
        "n": 910,
        "difference": around(value, 0.018),
        "mcnemar": {"a_only": 61, "b_only": 40, "p": 0.0457, "p_holm": 0.0914, "family": 3},
        "smallest_detectable": 0.031,
    }


def content(scores: Iterable[Json], comparisons: Iterable[Json] = ()) -> bytes:
    document = {"version": VERSION, "note": NOTE, "scores": [*scores]}
    return json.dumps({**document, "comparisons": [*comparisons]}).encode()


def rich() -> bytes:
    """Three models, three attributes, groups, an intersection, an incomplete score."""
    models = (("tiny-llava", 0.86), ("tiny-paligemma", 0.78), ("fake", 0.3))
    grouped: dict[str, list[tuple[str, ...]]] = {
        "race": [("gender",), ("race", "gender")],
        "age": [("gender",)],
    }
    scores = [
        score(
            attribute,
            model,
            skill=skill,
            groups=grouped.get(attribute, ()) if model != "tiny-paligemma" else (),
            calibrated=model == "tiny-llava",
        )
        for attribute in LABELS
        for model, skill in models
    ]
    scores.append(score("race", "tiny-llava", skill=0.9, view="race-6"))
    scores.append(score("age", "tiny-resnet", skill=0.7, groups=[("race", "age")]))
    failed = scores[0]
    failed |= {"complete": False, "n_run_failures": 31, "accuracy_worst": 0.8}
    failed["outcomes"] |= {"bad_image": 20, "pending": 11}
    compared = [
        comparison("tiny-llava", "tiny-paligemma", "race", 0.08),
        comparison("tiny-llava", "fake", "race", 0.51),
        comparison("tiny-llava", "tiny-paligemma", "age", -0.012),
    ]
    return content(scores, compared)


def asked(model: str, attribute: str, prompt: str = "What is it? Answer A or B.") -> Asked:
    name, labels = LABELS[attribute]
    return Asked(
        model=model,
        protocol="neutral",
        attribute=attribute,
        label_set=name,
        answer_mode="free",
        prompt=prompt,
        offered={"Latinx": "Latino_Hispanic", **{label: label for label in labels}},
        max_tokens=16,
        temperature=0.0,
        preprocessing="upright RGB, 224 x 224",
        weights=f"{model}@sha256:0123456789abcdef0123456789abcdef",
        engine="vllm 0.32.0 (cpu)",
        numerics={"dtype": "float32", "attention": "prefix"},
    )


def run(document: bytes, name: str = "demo", **prompts: str) -> Run:
    """A run with these scores; `prompts` are by model, with `_` for `-`."""
    found = scores_file.read(document, "metrics.json")
    combinations = dict.fromkeys((each.model, each.attribute) for each in found.scores)
    return Run(
        found,
        Provenance(
            run=name,
            facescan="0.1.0",
            created_at="2026-11-21T20:36:04+00:00",
            summary="910 images of sample.",
            dataset={"dataset": "sample", "split": "test", "images": "910", "digest": "ab" * 32},
            asked=tuple(
                asked(model, attribute, prompts.get(model.replace("-", "_"), "What is it?"))
                for model, attribute in combinations
            ),
            packages={"torch": "2.13.0", "vllm": "0.32.0"},
            hardware={"cores": "2", "machine": "x86_64"},
        ),
    )
