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
    gpus: Annotated[
        int | None, typer.Option(help="Of each engine, on a cluster that starts nodes for them.")
    ] = None,
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
def score(
    run: Annotated[str, typer.Argument(help="A run folder; a path or a URI.")],
    group_by: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as gender,race or gender+race, which takes them together; repeatable; "
            "`none` for no groups. Default: each label and group column, and gender+race."
        ),
    ] = None,
    groups_from: Annotated[
        str | None, typer.Option(help="Group by the answers of this run, as predicted_race.")
    ] = None,
    groups_model: Annotated[
        str | None, typer.Option(help="Whose answers, MODEL or MODEL/PROTOCOL, if it has several.")
    ] = None,
    min_cell: Annotated[
        int, typer.Option(min=1, help="Rows below which nothing is said of a group.")
    ] = 20,
    include_path: IncludePath = None,
) -> None:
    """Score a run again: predictions -> metrics, without Ray or a GPU."""
    from jobs.score import score as score_run

    _include(include_path)
    score_run(
        run,
        Console(),
        group_by=group_by or None,
        groups_from=groups_from,
        groups_model=groups_model,
        min_cell=min_cell,
    )


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Run folders; paths or URIs.")],
    attributes: Annotated[
        str | None, typer.Option(help="Only these, such as race,age. Default: all.")
    ] = None,
    views: Annotated[
        str | None, typer.Option(help="Only seen in these label sets, such as race-7.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file. Default: in the scores of the first run.")
    ] = None,
    include_path: IncludePath = None,
) -> None:
    """Compare the models of one or several runs on the rows that both have."""
    from jobs.compare import compare_runs

    _include(include_path)
    compare_runs(
        runs,
        Console(),
        wanted_attributes=_names(attributes),
        views=_names(views),
        output=output,
    )


class Format(StrEnum):
    """How a file of predictions is read."""

    TABLE = "table"
    FAIRFACE = "fairface"
    DEEPFACE = "deepface"


class Absent(StrEnum):
    """What became of images that a file of predictions has no row of."""

    PENDING = "pending"
    NO_FACE = "no_face"


@app.command("import")
def import_(
    run: Annotated[str, typer.Argument(help="A run folder, new or there already.")],
    predictions: Annotated[Path, typer.Option(help="CSV, Parquet or JSON.")],
    model: Annotated[str, typer.Option(help="What the model is called in every result.")],
    dataset: Annotated[
        str | None, typer.Option(help="Shards that they are about. Default: the run's own.")
    ] = None,
    split: Split = None,
    format: Annotated[
        Format,
        typer.Option(help="A table, FairFace's predict.py, or answers of deepface's analyze."),
    ] = Format.TABLE,
    id: Annotated[str | None, typer.Option(help="Column that names the image.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="ATTRIBUTE=COLUMN, such as race=pred; repeatable.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="How they were asked, by a name.")] = "imported",
    absent: Annotated[Absent, typer.Option(help="How images without a row end.")] = Absent.PENDING,
    config: Annotated[
        Path | None, typer.Option("-C", "--config", help="YAML: the columns of a table.")
    ] = None,
    include_path: IncludePath = None,
) -> None:
    """Make other people's answers a run, which is scored and compared like any other."""
    from jobs.import_ import Source, import_predictions

    _include(include_path)
    columns: dict[str, Any] = {} if id is None else {"id": id}
    if label:
        columns["labels"] = _assignments(label)
    source = Source(
        file=predictions,
        format=format.value,
        model=model,
        protocol=protocol,
        no_face=absent is Absent.NO_FACE,
        columns=columns,
        config=config,
    )
    folder = import_predictions(run, source, Console(), dataset=dataset, split=split)
    typer.echo(f"run folder: {folder.root.location}")


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders; paths or URIs.")],
    output_dir: Annotated[
        str | None, typer.Option(help="For the page. Default: report/ in the first run.")
    ] = None,
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Show some pictures of each kind of error.")
    ] = False,
    include_path: IncludePath = None,
) -> None:
    """Make a page, and Markdown, of the scores of one or several runs."""
    from jobs.report import report as make_report

    _include(include_path)
    make_report(runs, output_dir, Console(), with_images=with_images)


@app.command()
def view(
    run: Annotated[str, typer.Argument(help="A run folder; a path or a URI.")],
    include_path: IncludePath = None,
) -> None:
    """Look at a run's predictions, failures and pictures in a browser, on this machine only."""
    from jobs.view import view as serve

    _include(include_path)
    serve(run, Console())


@app.command()
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Name of a card, or a folder with one.")],
    attributes: Annotated[
        str | None, typer.Option(help="Such as gender,age. Default: all, race and emotion apart.")
    ] = None,
    host: Annotated[str, typer.Option(help="To listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="To listen on.")] = 8000,
    api_keys: Annotated[
        Path | None, typer.Option(help="File with keys, one a line. Default: the environment's.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="For Prometheus, on all addresses. Default: any port.")
    ] = None,
    enable_sensitive: Annotated[
        bool | None,
        typer.Option("--enable-sensitive", help="Answer about race and emotion; needs --purpose."),
    ] = None,
    purpose: Annotated[str | None, typer.Option(help="What race and emotion are for.")] = None,
    raw: Annotated[
        bool | None,
        typer.Option("--raw", help="The model itself too, in OpenAI's protocol, under /raw."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Another engine than the card's.")] = None,
    min_replicas: Annotated[int | None, typer.Option(help="Engines when nobody asks.")] = None,
    max_replicas: Annotated[int | None, typer.Option(help="Engines when many ask.")] = None,
    running: Annotated[int | None, typer.Option(help="Requests an engine has at a time.")] = None,
    waiting: Annotated[int | None, typer.Option(help="Requests beyond these; then 429.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Seconds for a request.")] = None,
    drain_s: Annotated[float | None, typer.Option(help="Seconds to finish, at the end.")] = None,
    cpus: Annotated[int | None, typer.Option(help="Cores of an engine.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of an engine.")] = None,
    max_image_bytes: Annotated[int | None, typer.Option(help="Larger files: 413.")] = None,
    max_image_pixels: Annotated[int | None, typer.Option(help="Larger pictures: 413.")] = None,
    include_path: IncludePath = None,
) -> None:
    """Answer about pictures over HTTP, on this machine, until Ctrl-C."""
    from jobs.serve import serve as start
    from jobs.serve import settings

    given = _given(context, "host", "port", "api_keys", "metrics_port")
    if attributes is not None:
        given["attributes"] = _names(attributes)
    try:
        start(
            settings(given),
            Console(),
            host=host,
            port=port,
            keys=api_keys,
            metrics_port=metrics_port,
        )
    except KeyboardInterrupt:
        typer.echo("facescan: stopped before it answered", err=True)
        raise typer.Exit(3) from None


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
def sensitivity(
    context: typer.Context,
    protocols: Annotated[
        str | None, typer.Option(help="Further wordings, such as neutral-which,neutral-photo.")
    ] = None,
    modes: Annotated[
        str | None, typer.Option(help="Answer modes. Default: free,choice,score.")
    ] = None,
    orders: Annotated[int, typer.Option(help="Of the options: as is, reversed, shuffled.")] = 2,
    repeats: Annotated[int, typer.Option(help="How often the same is asked again.")] = 2,
    dataset: DatasetFlag = None,
    model: ModelFlag = None,
    attributes: AttributesFlag = None,
    output_dir: Annotated[str | None, typer.Option(help="Folder for the study's runs.")] = None,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(help="Images; a seeded sample of 1000.")] = None,
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
    include_path: IncludePath = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Join this cluster instead of a Ray of the study's own.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Ask the same rows in other words, orders and modes, and again; say how far figures move."""
    from jobs.config import resolve
    from jobs.sensitivity import sensitivity as vary
    from jobs.sensitivity import study

    varied = study(protocols, modes, orders, repeats)
    given = _given(context, "protocols", "modes", "orders", "repeats")
    try:
        vary(resolve(given, config), varied, Console())
    except KeyboardInterrupt:
        typer.echo("facescan: stopped; the same command again continues", err=True)
        raise typer.Exit(3) from None


@app.command()
def audit(
    shards: Annotated[list[str], typer.Argument(help="Folders of shards; paths or URIs.")],
    distance: Annotated[
        int, typer.Option(help="Bits of 64 in which the hashes of copies may differ.")
    ] = 4,
    output: Annotated[
        Path | None, typer.Option(help="The copies, one by one: a .parquet or .csv file.")
    ] = None,
) -> None:
    """Find copies within and between splits and datasets; exit 1 if there are any between."""
    from jobs.audit import audit as find_copies

    if find_copies(shards, Console(), distance=distance, output=output).leaks:
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
    RECIPES = "recipes"


@app.command()
def ls(kind: Annotated[Kind, typer.Argument()], include_path: IncludePath = None) -> None:
    """List the names of a kind, one a line with what it is; of recipes the files for -C."""
    _include(include_path)
    if kind is Kind.RECIPES:
        _list_recipes()
        return
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


def _list_recipes() -> None:
    import recipes

    here = Path.cwd()
    described = {
        str(file.relative_to(here) if file.is_relative_to(here) else file): text
        for file, text in recipes.runs().items()
    }
    width = max(map(len, described))
    for name, text in described.items():
        typer.echo(f"{name:{width}}  {text}")


def _given(context: typer.Context, *apart: str) -> dict[str, Any]:
    """The settings that were given, but those `apart`; a repeatable flag that was not is []."""
    return {
        name: value
        for name, value in context.params.items()
        if name not in ("config", *apart) and value not in (None, [], ())
    }


def _assignments(given: list[str]) -> dict[str, str]:
    """The pairs of `a=b`."""
    pairs = dict(each.split("=", 1) for each in given if "=" in each)
    for each in given:
        if "=" not in each:
            raise UsageError(f"--label {each}: expected ATTRIBUTE=COLUMN, such as race=pred_race")
    return pairs


def _names(given: str | None) -> list[str]:
    """The names in `a,b`; none where nothing is given."""
    return [name for each in (given or "").split(",") if (name := each.strip())]


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
