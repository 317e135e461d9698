"""`facescan abort`: cancels a run's batches, and keeps what they had answered."""

import uuid
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from facescan import shards
from facescan.errors import DataError
from facescan.run import folder as run_folder
from facescan.run import journal, lease, manifest, predictions
from facescan.run.folder import RunFolder, writing
from facescan.run.selection import image_ids, sample
from jobs import batch_records
from jobs.batches import Batches
from jobs.run import SAMPLE
from jobs.stop_signals import stoppable


def abort(location: str, console: Console) -> None:
    """Cancel the batches of the run at this path or URI, and delete what was uploaded for them.

    What the provider had answered by then is billed, and becomes replies and predictions.

    Raises:
        UsageError: there is no run, or another command is working on it.
        FacescanError: the provider cannot be reached, or refuses the key.
        StorageError: the run folder cannot be written.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; the same command again continues.
    """
    folder = run_folder.existing(location)
    with stoppable(), writing(folder), lease.hold(folder.root) as held:
        batch_records.at(folder).storage.sweep()
        replies = 0

        def tell(model: str, counts: Mapping[str, int]) -> None:
            del model
            nonlocal replies
            replies += sum(counts.values())

        session = uuid.uuid4().hex[:8]
        with Batches(folder, session, None, console, tell, held.check) as open_batches:
            open_batches.resume()
            open_batches.abort()
        journal.compact(folder.replies)
        _build_predictions(folder, console)
    _line(console, f"no batch of {location} is open any more; replies collected: {replies:,}")


def _build_predictions(folder: RunFolder, console: Console) -> None:
    known = manifest.read(folder)
    place = known.dataset.location
    if known.dataset.digest.startswith(f"{SAMPLE}:"):
        # Wherever the run folder was moved to.
        place = f"{folder.root.location}/shards/{Path(place).name}"
    try:
        data = shards.open(place, known.dataset.split)
    except DataError as error:
        _line(console, f"predictions are not built: {error}")
        return
    everything = sample(image_ids(data), known.dataset.limit, known.dataset.seed)
    predictions.build(folder, data, everything, manifest.questions(known))


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
