"""facescan score RUN: predictions -> counts -> metrics, a table and two files."""

from rich.console import Console

from facescan import attributes
from facescan.errors import UsageError
from facescan.run import folder
from facescan.score import metrics, output, table, views
from facescan.score.counts import count
from facescan.storage import Storage


def score(run: str, console: Console) -> Storage:
    """Score the predictions of the run folder at the path or URI `run`, as far as it has come.

    Prints the table, then where the files are. Scoring again replaces the files.

    Returns:
        The folder that holds `metrics.parquet` and `metrics.json`.

    Raises:
        UsageError: `run` is not a run, or has no predictions yet.
        DataError: the predictions are not what they should be.
        OSError: they cannot be reached, or the scores cannot be written.
    """
    place = folder.existing(run)
    names = [name for name in place.predictions.names() if name.endswith(".parquet")]
    counts = count(place.predictions, names) if names else None
    if not counts:
        raise UsageError(
            f"{run}: there are no predictions to score. The run may not have come that far: "
            "give the same `facescan run` command again to continue it."
        )
    scores = [metrics.of(tally) for tally in views.tallies(counts, attributes.load)]
    written = output.write(place.scores, scores)
    table.show(scores, console)
    for line in (output.NOTE, *written):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return place.scores
