"""`scores/metrics.json` as the report reads it; docs/scores.md says what each part means."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facescan.errors import DataError
from facescan.score.intervals import CONFIDENCE
from facescan.score.output import VERSION


class _Part(BaseModel):
    # Keys may be added to the file without a new version.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Interval(_Part):
    """A figure with its 95 % interval; None where there is none. Shares are fractions."""

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None


class Class(_Part):
    """One class against all others."""

    label: str
    support: int
    n_predicted: int
    precision: Interval
    recall: Interval
    f1: Interval


class Confusion(_Part):
    """`counts[target][column]`; a column is `label:<class>`, `outside_view` or `outcome:<name>`."""

    targets: list[str]
    columns: list[str]
    counts: list[list[int]]


class Intervals(_Part):
    """How the intervals of a score were made."""

    method: str
    subjects: int | None = None
    remark: str = ""


class Ordinal(_Part):
    """Figures for labels with an order."""

    off_by_one: Interval
    mae_bins: Interval
    quadratic_kappa: Interval
    mae_years: Interval | None = None


class Bin(_Part):
    """Answers whose confidence lies between two bounds."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: Interval


class Calibration(_Part):
    """How far probabilities of answers are what they say."""

    n: int
    ece: float | None
    brier: float | None
    bins: list[Bin]


class Cell(_Part):
    """One group; of a suppressed one only its size is known, every figure is None."""

    group: list[str]
    n: int
    n_answered: int | None = None
    n_run_failures: int = 0
    suppressed: bool
    accuracy: Interval
    simultaneous: Interval
    accuracy_answered: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    outcome_rates: dict[str, Interval] = Field(default_factory=dict)
    classes: list[Class] = Field(default_factory=list)
    ordinal: Ordinal | None = None
    calibration: Calibration | None = None


class Equality(_Part):
    """A test of equal rates; `p_holm` is adjusted for all tests of groups in the score."""

    method: str
    statistic: float | None = None
    df: float | None = None
    p: float | None
    p_holm: float | None = None

    @property
    def found(self) -> bool:
        """Whether the rates differ beyond chance, as the findings of the file have it."""
        p = self.p if self.p_holm is None else self.p_holm
        return p is not None and p <= 1 - CONFIDENCE


class Gap(Interval):
    """Between the best and the worst group; `corrected` for what chance adds, without bounds."""

    corrected: float | None = None


class Worst(_Part):
    """The group with the lowest accuracy."""

    group: list[str]
    accuracy: Interval


class Grouping(_Part):
    """A score by one column, or by several at once."""

    by: list[str]
    source: str
    min_cell: int
    cells: list[Cell]
    pooled: Interval
    equal_rate: Equality | None = None
    largest_gap: Gap | None = None
    ratio: Gap | None = None
    worst: Worst | None = None
    equalized_odds_difference: float | None = None
    demographic_parity_difference: float | None = None
    outcome_tests: dict[str, Equality | None] = Field(default_factory=dict)
    findings: list[str] = Field(default_factory=list)
    remarks: list[str] = Field(default_factory=list)

    @property
    def tested(self) -> bool:
        """Whether anything of the groups was compared at all."""
        return self.equal_rate is not None or any(self.outcome_tests.values())


class Score(_Part):
    """One model, dataset, split, attribute and protocol in one view."""

    model: str
    dataset: str
    split: str
    attribute: str
    protocol: str
    answer_mode: str
    asked_label_set: str
    view: str
    complete: bool
    n: int
    n_answered: int
    n_correct: int
    n_outside_view: int
    n_run_failures: int
    n_excluded: int
    n_unlabelled: int
    accuracy: Interval
    accuracy_answered: Interval
    accuracy_worst: float | None
    accuracy_best: float | None
    balanced_accuracy: Interval
    macro_f1: Interval
    intervals: Intervals | None = None
    outcomes: dict[str, int]
    outcome_rates: dict[str, Interval] = Field(default_factory=dict)
    zero_support: list[str]
    classes: list[Class]
    confusion: Confusion
    ordinal: Ordinal | None = None
    calibration: Calibration | None = None
    groups: list[Grouping] = Field(default_factory=list)


class Side(_Part):
    """One of two that are compared; `run` is where its run is, or nothing in the run's own file."""

    run: str = ""
    model: str
    protocol: str
    answer_mode: str = ""
    asked_label_set: str = ""


class McNemar(_Part):
    """Rows that only one of two has right, and how likely such a split is by chance."""

    a_only: int
    b_only: int
    p: float | None
    p_holm: float | None = None


class Comparison(_Part):
    """Two models on the same rows; the difference is a's accuracy minus b's."""

    a: Side
    b: Side
    dataset: str
    split: str
    attribute: str
    view: str
    n: int
    difference: Interval
    mcnemar: McNemar
    smallest_detectable: float | None = None


class Document(_Part):
    """The whole file."""

    note: str
    scores: list[Score]
    comparisons: list[Comparison] = Field(default_factory=list)


class ComparisonDocument(_Part):
    """What `facescan compare` writes.

    Attributes:
        runs: where they are.
    """

    runs: list[str]
    comparisons: list[Comparison]


class _Versioned(_Part):
    version: int


_Content = TypeVar("_Content", bound=_Part)


def read(content: bytes, where: str) -> Document:
    """The content of `metrics.json`; `where` it stands is for messages.

    Raises:
        DataError: it is damaged, or was written by another version of facescan.
    """
    return _read(Document, content, where, VERSION, "facescan score")


def read_comparison(content: bytes, where: str, version: int) -> ComparisonDocument:
    """The content of what `facescan compare` writes in this version.

    Raises:
        DataError: it is damaged, or was written by another version of facescan.
    """
    return _read(ComparisonDocument, content, where, version, "facescan compare")


def _read(kind: type[_Content], content: bytes, where: str, version: int, command: str) -> _Content:
    try:
        found = _Versioned.model_validate_json(content).version
        if found != version:
            raise DataError(f"{where}: version {found}, expected {version}; `{command}` writes it")
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        message = f"{where}: damaged: {place}: {first['msg']}; `{command}` writes it anew"
        raise DataError(message) from error
