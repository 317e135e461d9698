"""facescan score RUN: predictions -> counts -> metrics, a table and two files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from facescan import attributes
from facescan.errors import UsageError
from facescan.run import folder
from facescan.score import compare, metrics, output, table, views
from facescan.score.counts import COMBINATION, Counts, columns, count
from facescan.score.groupings import groupings
from facescan.score.groups import MIN_CELL
from facescan.score.predicted_groups import PredictedGroups
from facescan.storage import Storage

_THREADS = 2
"""More would hold more in memory at a time: 0.3 GB each for a million rows that have subjects."""


def score(
    run: str,
    console: Console,
    *,
    group_by: Sequence[str] | None = None,
    groups_from: str | None = None,
    groups_model: str | None = None,
    min_cell: int = MIN_CELL,
) -> Storage:
    """Score the predictions of the run folder at the path or URI `run`, as far as it has come.

    Prints the table and what differs between groups, then where the files are. Scoring again
    replaces the files.

    Args:
        run: what is scored.
        console: for the table.
        group_by: as `groupings` has it; None for its default.
        groups_from: another run, whose answers are columns to group by.
        groups_model: whose answers these are, where that run has several.
        min_cell: rows below which nothing is said of a group.

    Returns:
        The folder that holds `metrics.parquet` and `metrics.json`.

    Raises:
        UsageError: `run` is not a run, or has no predictions yet; or there is no such column.
        DataError: the predictions are not what they should be.
        OSError: they cannot be reached, or the scores cannot be written.
    """
    place = folder.existing(run)
    names = [name for name in place.predictions.names() if name.endswith(".parquet")]
    present = columns(place.predictions, names)
    joined = None
    if groups_from is not None:
        other = folder.existing(groups_from).predictions
        joined = PredictedGroups(groups_from, other, groups_model)
    elif groups_model is not None:
        raise UsageError("--groups-model says whose answers of --groups-from are meant: give both")
    by = groupings(
        group_by,
        [*present, *(joined.columns if joined else ())],
        joined.source if joined else "",
    )
    counts = count(place.predictions, names, attributes.load, by, joined) if names else []
    if not counts:
        raise UsageError(
            f"{run}: there are no predictions to score. The run may not have come that far: "
            "give the same `facescan run` command again to continue it."
        )
    # Arithmetic on subjects leaves Python's lock.
    with ThreadPoolExecutor(_THREADS) as pool:
        tallies = views.tallies(counts, attributes.load)
        scores = list(pool.map(lambda tally: metrics.of(tally, min_cell), tallies))
    comparisons = (
        compare.compare([("", place.predictions)], attributes.load) if _several(counts) else []
    )
    written = output.write(place.scores, scores, comparisons)
    table.show(scores, console)
    for line in (output.NOTE, *written):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return place.scores


def _several(counts: Sequence[Counts]) -> bool:
    """Whether anything was asked in two ways, so that there is something to compare."""
    places = ("dataset", "split", "attribute")
    asked = [dict(zip(COMBINATION, each.combination, strict=True)) for each in counts]
    return len({tuple(each[name] for name in places) for each in asked}) < len(asked)
