"""How figures came about, what they do not say, and how to use them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from facescan.report.blocks import (
    Block,
    Cell,
    Column,
    Folded,
    Items,
    Quote,
    Section,
    Table,
    Text,
)
from facescan.report.entries import Entry, Run
from facescan.report.provenance import Asked, Imported, Provenance
from facescan.report.summary import AVOIDS_REFUSALS


def manifest(runs: Sequence[Run]) -> Section:
    """Data, models, exact prompts, hardware and versions of every run."""
    return Section(
        "manifest",
        "How it was made",
        [],
        [_run(number, run.provenance) for number, run in enumerate(runs)],
    )


def _run(number: int, run: Provenance) -> Section:
    facts = {
        "run": run.run,
        "begun": run.created_at,
        **run.dataset,
        "facescan": run.facescan,
        **run.hardware,
        **run.packages,
    }
    return Section(
        f"manifest-{number}",
        f"Run {run.run}",
        [
            _facts(f"table-run-{number}", f"Run {run.run}", facts),
            _models(number, run),
            *_prompts(run),
        ],
    )


def _facts(name: str, caption: str, facts: Mapping[str, str]) -> Table:
    return Table(
        name,
        caption,
        (Column("what", numbers=False), Column("value", numbers=False)),
        tuple((Cell((key,)), Cell((value,))) for key, value in facts.items()),
    )


def _models(number: int, run: Provenance) -> Table:
    seen = {
        (each.model, each.engine, each.weights, _settings(each.numerics)): each
        for each in run.asked
    }
    return Table(
        f"table-models-{number}",
        f"Models of run {run.run}",
        tuple(
            Column(title, numbers=False)
            for title in ("model", "weights and revision", "engine", "settings", "preprocessing")
        ),
        tuple(
            tuple(
                Cell((text,))
                for text in (
                    each.model,
                    each.weights if each.imported is None else _NOT_KNOWN,
                    each.engine,
                    _settings(each.numerics) if each.imported is None else _NOT_KNOWN,
                    each.preprocessing if each.imported is None else _NOT_KNOWN,
                )
            )
            for each in seen.values()
        ),
    )


_NOT_KNOWN = "not known"


def _settings(numerics: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numerics.items())


def _prompts(run: Provenance) -> Iterator[Block]:
    """Each prompt, and each imported file, once, with everything that it was about."""
    together: dict[tuple[str, ...], list[Asked]] = {}
    for each in run.asked:
        file = () if each.imported is None else (each.model, each.imported.sha256)
        together.setdefault((each.protocol, each.prompt, *file), []).append(each)
    for asked in together.values():
        first = asked[0]
        attributes = ", ".join(dict.fromkeys(each.attribute for each in asked))
        blocks = _sent(asked) if first.imported is None else _read(asked, first.imported)
        yield Folded(f"Protocol {first.protocol}: {attributes}", tuple(blocks))


def _sent(asked: Sequence[Asked]) -> Iterator[Block]:
    first = asked[0]
    models = ", ".join(dict.fromkeys(each.model for each in asked))
    yield Quote("Prompt, as sent", first.prompt)
    yield Text(
        (
            f"Asked of {models}. Answer mode {first.answer_mode}, at most {first.max_tokens} "
            f"tokens, temperature {first.temperature:g}.",
        )
    )
    if first.avoids_refusals:
        yield Text((AVOIDS_REFUSALS,))
    for name, label_set, offered in dict.fromkeys(map(_offered, asked)):
        yield Text((f"Offered for {name} ({label_set}): {offered}.",))


def _read(asked: Sequence[Asked], imported: Imported) -> Iterator[Block]:
    yield Text(
        (
            f"Answers of {asked[0].model}. Imported from {imported.file} (sha256 "
            f"{imported.sha256}), format {imported.format}; how it was asked is not known.",
        )
    )
    found = [f"rows: {imported.rows:,}", f"images answered about: {imported.images:,}"]
    found += [f"{what}: {count:,}" for what, count in imported.counted.items()]
    yield Items(tuple((each,) for each in found))
    for name, label_set, offered in dict.fromkeys(map(_offered, asked)):
        yield Text((f"Labels read for {name} ({label_set}): {offered}.",))


def _offered(asked: Asked) -> tuple[str, str, str]:
    texts = [
        text if text == label else f"{text} (read as {label})"
        for text, label in asked.offered.items()
    ]
    return asked.attribute, asked.label_set, ", ".join(texts) or "nothing, answered freely"


def limits(runs: Sequence[Run], entries: Sequence[Entry]) -> Section:
    """What the figures do not say."""
    return Section("limits", "Limits", [Items(tuple((said,) for said in _limits(runs, entries)))])


def _limits(runs: Sequence[Run], entries: Sequence[Entry]) -> Iterable[str]:
    yield (
        "Intervals speak of chance in the choice of pictures. They do not cover wrong targets, "
        "another wording of the question or another order of the options, which can move accuracy "
        "by more than any interval here."
    )
    if incomplete := sum(not entry.score.complete for entry in entries):
        yield (
            f"{incomplete} of {len(entries)} scores are incomplete (marked *): rows failed in "
            "the run and are in no accuracy."
        )
    if any(entry.score.n_excluded for entry in entries):
        yield "Some views leave rows out; how many is said under their table."
    yield (
        "Whether a model saw these pictures in its training cannot be excluded from here. Leakage "
        "between data that one has is what facescan audit looks for."
    )
    yield (
        "A model behind an API can change under its name, and repeated runs need not agree to the "
        "last answer, on a GPU neither."
    )
    if len(runs) > 1:
        yield (
            "Runs stand side by side here; only rows that two models share can be compared, "
            "which the part Models compared does."
        )


def responsible_use(note: str) -> Section:
    """What has to stand in every report."""
    return Section(
        "use",
        "Responsible use",
        [
            Items(
                (
                    (note,),
                    (
                        "A figure here says how a model answered questions about photographs of "
                        "one dataset. It says nothing of any person, and is no ground for a "
                        "decision about one.",
                    ),
                    (
                        "Group figures are of the groups as the dataset, or a model where that is "
                        "said, perceives them; a group without rows enough is not judged.",
                    ),
                    (
                        "No identity templates were computed. No picture is sent to a model "
                        "server without the user's consent (--allow-upload).",
                    ),
                    (
                        "Wording that avoids refusals, such as the paper's hypothetical, "
                        "fictional scenario, is used only where it is asked for by name, and is "
                        "marked † wherever its figures stand.",
                    ),
                )
            )
        ],
    )
