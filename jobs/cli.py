"""The command line: flags in, one call to a job, messages and exit codes out.

Exit codes: 0 done; 1 failed; 2 usage or configuration; 3 stopped by a signal or the budget, can be
continued; 4 refused to mix.
"""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from facescan import __version__, attributes, datasets, models, protocols, registry
from facescan.errors import FacescanError, MixingError, RunStopped, UsageError

_CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    # lm-eval's users type --output_dir; both spellings work.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}

app = typer.Typer(
    help="Ask vision-language models what they see in face photographs, and score the answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
)

IncludePath = Annotated[
    list[Path] | None,
    typer.Option(help="Folder with attributes/, models/ ... of your own; repeatable."),
]

DatasetFlag = Annotated[
    str | None, typer.Option(help="`sample`, or the path or URI of ingested shards.")
]
ModelFlag = Annotated[
    list[str] | None,
    typer.Option(help="Name of a card or a folder with one; repeatable, or a,b."),
]
AttributesFlag = Annotated[
    str | None, typer.Option(help="Such as race,age. Default: what model and dataset share.")
]
OutputDir = Annotated[str | None, typer.Option(help="Becomes the run folder; a path or s3:// URI.")]
Split = Annotated[str | None, typer.Option(help="Of the dataset. Default: all.")]
Limit = Annotated[int | None, typer.Option(help="Images; a seeded sample.")]
Seed = Annotated[int | None, typer.Option(help="Of the sample.")]
ProtocolFlag = Annotated[str | None, typer.Option(help="Default: each model's own.")]
ModelBaseUrl = Annotated[
    str | None, typer.Option(help="Server for models behind an API, such as your own vLLM's.")
]
MaxConnections = Annotated[int | None, typer.Option(help="Most calls at a time.")]
Rpm = Annotated[float | None, typer.Option(help="The account's requests per minute.")]
Tpm = Annotated[float | None, typer.Option(help="The account's tokens per minute.")]
MaxCost = Annotated[float | None, typer.Option(help="US dollars the run may cost in all.")]
Batch = Annotated[
    bool | None,
    typer.Option("--batch", help="Through the provider's Batch API: cheaper, within a day."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("-C", "--config", help="YAML file with any of these settings.")
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"facescan {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and stop.")
    ] = False,
) -> None:
    del version


@app.command()
def run(
    context: typer.Context,
    dataset: DatasetFlag = None,
    model: ModelFlag = None,
    attributes: AttributesFlag = None,
    output_dir: OutputDir = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = None,
    protocol: ProtocolFlag = None,
    engine: Annotated[str | None, typer.Option(help="Another engine than the card's.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engines. Default: one per GPU.")] = None,
    model_base_url: ModelBaseUrl = None,
    allow_upload: Annotated[
        bool | None,
        typer.Option("--allow-upload", help="Pictures may be sent to a server, local ones too."),
    ] = None,
    max_connections: MaxConnections = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    max_cost: MaxCost = None,
    allow_unknown_price: Annotated[
        bool | None,
        typer.Option("--allow-unknown-price", help="Ask models whose price is not known."),
    ] = None,
    batch: Batch = None,
    include_path: IncludePath = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Join this cluster instead of a Ray of the run's own.")
    ] = None,
    object_store_mb: Annotated[
        int | None, typer.Option(help="Bound on what streaming keeps in Ray's object store.")
    ] = None,
    max_image_bytes: Annotated[int | None, typer.Option(help="Larger files: bad_image.")] = None,
    max_image_pixels: Annotated[
        int | None, typer.Option(help="Larger pictures: bad_image.")
    ] = None,
    retry: Annotated[
        str | None, typer.Option(help="Ask again what ended so, such as bad_image,engine_error.")
    ] = None,
    fail_on_error: Annotated[
        float | None,
        typer.Option(help="Give up above so many failed requests; below 1 a fraction of all."),
    ] = None,
    score: Annotated[bool | None, typer.Option("--score/--no-score", help="At the end.")] = None,
    config: ConfigFile = None,
) -> None:
    """Ask models about the images of a dataset; the same command again continues.

    Flags override the environment (FACESCAN_DATASET ...), which overrides the file given by -C.
    """
    from jobs.config import resolve
    from jobs.run import run as ask

    resolved = resolve(_given(context), config)
    console = Console()
    try:
        folder = ask(resolved, console)
    except KeyboardInterrupt:
        typer.echo("facescan: stopped; the same command again continues", err=True)
        raise typer.Exit(3) from None
    if resolved.score:
        from jobs.score import score as score_run

        score_run(folder.root.location, console)
    console.print(f"run folder: {folder.root.location}", highlight=False, soft_wrap=True)


@app.command()
def plan(
    context: typer.Context,
    dataset: DatasetFlag = None,
    model: ModelFlag = None,
    attributes: AttributesFlag = None,
    output_dir: OutputDir = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = None,
    protocol: ProtocolFlag = None,
    include_path: IncludePath = None,
    model_base_url: ModelBaseUrl = None,
    max_connections: MaxConnections = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    max_cost: MaxCost = None,
    batch: Batch = None,
    config: ConfigFile = None,
) -> None:
    """What `run` with these settings would ask, send and cost; nothing is sent or written."""
    from jobs.config import resolve
    from jobs.plan import plan as forecast

    forecast(resolve(_given(context), config), Console())


@app.command()
def ingest(
    dataset: Annotated[str, typer.Argument(help="One of `facescan ls datasets`.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the shards; new or empty.")],
    source: Annotated[
        Path | None, typer.Option(help="Folder with the dataset as published.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("-C", "--config", help="YAML: the columns of a `table`.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    size: Annotated[int | None, typer.Option(help="Faces to draw (`sample`).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the drawing (`sample`).")] = None,
    allow_missing: Annotated[
        bool, typer.Option(help="Count rows whose image is missing instead of stopping.")
    ] = False,
    include_path: IncludePath = None,
) -> None:
    """Turn a dataset as it is published, or a table of your own, into shards."""
    from jobs.ingest import ingest as make_shards

    _include(include_path)
    make_shards(
        dataset,
        output_dir,
        Console(),
        source=source,
        config=config,
        split=split,
        limit=limit,
        size=size,
        seed=seed,
        allow_missing=allow_missing,
    )


@app.command()
def abort(
    run: Annotated[str, typer.Argument(help="A run folder; a path or a URI.")],
    include_path: IncludePath = None,
) -> None:
    """Cancel a run's batches at the provider, keep what was answered, delete what was uploaded."""
    from jobs.abort import abort as cancel

    _include(include_path)
    try:
        cancel(run, Console())
    except KeyboardInterrupt:
        typer.echo("facescan: stopped; the same command again continues", err=True)
        raise typer.Exit(3) from None


@app.command()
def score(run: Annotated[str, typer.Argument(help="A run folder; a path or a URI.")]) -> None:
    """Score a run again: predictions -> metrics, without Ray or a GPU."""
    from jobs.score import score as score_run

    score_run(run, Console())


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="A run folder; a path or s3:// URI.")],
    include_path: IncludePath = None,
) -> None:
    """Check that a run has lost, doubled and altered nothing; exit 1 where something is wrong."""
    from jobs.verify import verify_run

    _include(include_path)
    if not verify_run(run, Console()):
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """What is installed, which engines can run here, and why others cannot."""
    from jobs.doctor import doctor as examine

    raise typer.Exit(examine(Console()))


class Kind(StrEnum):
    """What can be listed."""

    DATASETS = "datasets"
    MODELS = "models"
    PROTOCOLS = "protocols"
    ATTRIBUTES = "attributes"


@app.command()
def ls(kind: Annotated[Kind, typer.Argument()], include_path: IncludePath = None) -> None:
    """List the names of a kind, one a line with what it is."""
    _include(include_path)
    described: dict[Kind, Callable[[str], str]] = {
        Kind.DATASETS: lambda name: datasets.load(name).description,
        Kind.MODELS: lambda name: models.load(name).description,
        Kind.PROTOCOLS: lambda name: protocols.load(name).description,
        Kind.ATTRIBUTES: lambda name: ", ".join(s.name for s in attributes.load(name).label_sets),
    }
    # A family of datasets is one file with several names.
    names = datasets.names() if kind is Kind.DATASETS else registry.names(f"facescan.{kind}")
    width = max(map(len, names))
    for name in names:
        typer.echo(f"{name:{width}}  {' '.join(described[kind](name).split())}")


def _given(context: typer.Context) -> dict[str, Any]:
    """The settings that were given; a repeatable flag that was not is an empty list."""
    return {
        name: value
        for name, value in context.params.items()
        if name != "config" and value not in (None, [], ())
    }


def _include(folders: list[Path] | None) -> None:
    for folder in folders or ():
        registry.include(folder)


def main() -> None:
    """The `facescan` command."""
    try:
        app()
    except FacescanError as error:
        typer.echo(f"facescan: {error}", err=True)
        codes = {UsageError: 2, RunStopped: 3, MixingError: 4}
        sys.exit(next((code for kind, code in codes.items() if isinstance(error, kind)), 1))


if __name__ == "__main__":
    main()
