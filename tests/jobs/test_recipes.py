"""The recipes that ship: each resolves, plans, and runs on miniatures of the published datasets.

Models without weights on a test machine are stood in for by folders of the same names, with the
card's own protocol and attributes and the fake engine.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

import recipes
from facescan import attributes, models, published, shards
from facescan.errors import UsageError
from facescan.score.published import beside
from jobs import cli
from jobs.config import resolve
from jobs.ingest import ingest
from jobs.passes import passes
from jobs.plan import plan
from jobs.run import run
from jobs.score import score
from recipes import convert_fairface
from tests.conftest import jpeg

QUIET = Console(file=io.StringIO())
FILES = list(recipes.runs())
PAPER = published.load("arxiv-2410.24148")
RESNET = "fairface-resnet34"
"""The folder that recipes/convert_fairface.py is told to make."""

SECTION_55 = ["utkface-race", "utkface-gender", "utkface-age"]
TABLES = [*(name for name in PAPER.tables if name not in SECTION_55), "utkface"]
RUN = ["table10", "table12", "table13", "utkface"]
"""Each test set, and each attribute of which a table is; all tables are planned."""


def fairface(root: Path) -> None:
    """Every race and age group once, in the original layout; race and age do not go together."""
    ages = attributes.load("age").label_set("age-9").labels
    races = attributes.load("race").label_set("race-7").labels
    (root / "val").mkdir(parents=True)
    lines = ["file,age,gender,race,service_test"]
    for number in range(len(ages)):
        (root / "val" / f"{number}.jpg").write_bytes(jpeg(number))
        gender = ("Male", "Female")[number % 2]
        lines.append(f"val/{number}.jpg,{ages[number]},{gender},{races[number % 7]},True")
    (root / "fairface_label_val.csv").write_text("\n".join(lines) + "\n")


def affectnet(root: Path) -> None:
    """Every emotion once."""
    for folder in ("images", "annotations"):
        (root / "val_set" / folder).mkdir(parents=True)
    for code in range(8):
        (root / "val_set" / "images" / f"{code}.jpg").write_bytes(jpeg(code))
        for kind, value in (("exp", code), ("val", 0.0), ("aro", 0.0), ("lnd", [0.0] * 136)):
            np.save(root / "val_set" / "annotations" / f"{code}_{kind}.npy", np.array(value))


def utkface(root: Path) -> None:
    """Every race once, at ages of several groups."""
    root.mkdir(parents=True)
    for race in range(5):
        name = f"{20 * race}_{race % 2}_{race}_2017011617452512{race}.jpg"
        (root / name).write_bytes(jpeg(race))


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Test set of the paper -> shards, ingested as users ingest the real ones."""
    made = {}
    for name, dataset, make in (
        ("fairface", "fairface.025", fairface),
        ("affectnet", "affectnet.8", affectnet),
        ("utkface", "utkface.wild", utkface),
    ):
        source = tmp_path_factory.mktemp(name)
        make(source / "source")
        made[name] = source / "shards"
        ingest(dataset, made[name], QUIET, source=source / "source")
    return made


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder a model folder for every model of the recipes."""
    monkeypatch.chdir(tmp_path)
    named = {model for file in FILES for model in yaml.safe_load(file.read_text())["model"]}
    for name in named:
        card = models.load(name)
        stand_in(name, card.protocol, list(card.attributes), card.prompt)
    resnet = convert_fairface.card()
    stand_in(RESNET, str(resnet["protocol"]), resnet["attributes"], "{question}")


def stand_in(name: str, protocol: str, answers: Any, prompt: str) -> None:
    card = {
        "description": "A stand-in.",
        "engine": "fake",
        "gpus": 0,
        "protocol": protocol,
        "attributes": answers,
        "prompt": prompt,
    }
    Path(name).mkdir()
    (Path(name) / "facescan.yaml").write_text(yaml.safe_dump(card))


def of_table(table: str) -> list[Path]:
    """The table's own recipe, then those whose rows stand in the same run folder."""
    found = [file for file in FILES if file.stem.partition("-")[0] == table]
    return sorted(found, key=lambda file: len(file.stem))


def keys(table: str) -> list[str]:
    return SECTION_55 if table == "utkface" else [table]


def data_of(table: str, miniatures: dict[str, Path]) -> Path:
    return miniatures[PAPER.tables[keys(table)[0]].test_set]


def test_every_table_that_facescan_can_run_has_its_recipe() -> None:
    assert {file.stem.partition("-")[0] for file in FILES} == set(TABLES)
    assert {file.stem for file in FILES} >= set(TABLES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_asks_the_real_models_what_its_table_is_of(
    file: Path, miniatures: dict[str, Path], tmp_path: Path
) -> None:
    table = file.stem.partition("-")[0]
    data = shards.open(str(data_of(table, miniatures)))
    flags = {"dataset": data.location, "output_dir": tmp_path / "run", "allow_upload": True}
    config = resolve(flags, file)
    planned = passes(config, data.label_sets)
    assert {each.card.name for each in planned} == set(config.model)
    assert config.split in data.splits
    for key in keys(table):
        wanted = PAPER.tables[key]
        asked = [
            (each.card.name, question.protocol, label_set)
            for each in planned
            for question in each.questions
            for name, label_set in zip(question.attributes, question.label_sets, strict=True)
            if name == wanted.attribute
        ]
        assert {model for model, _, _ in asked} == set(config.model)
        views = attributes.load(wanted.attribute)
        assert all(views.view(label_set, wanted.view) for _, _, label_set in asked)
        for model, protocol, _ in asked:
            (row,) = {r.model for r in wanted.rows if model in PAPER.models[r.model].cards}
            theirs = PAPER.protocol(next(r for r in wanted.rows if r.model == row))
            assert protocol == (theirs or "neutral-joint")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_says_what_it_is_and_which_rows_cannot_be_run(file: Path) -> None:
    table = file.stem.partition("-")[0]
    text = " ".join(file.read_text().replace("\n# ", " ").split())
    assert recipes.runs()[file].startswith(PAPER.tables[keys(table)[0]].title.partition(",")[0])
    if "-" not in file.stem:
        lacking = {
            row.model
            for row in PAPER.tables[keys(table)[0]].rows
            if PAPER.models[row.model].not_runnable
        }
        for model in lacking:
            name = model.removesuffix(" (fine-tuned)").replace("Florence-2 Large", "Large")
            assert name.lower() in text.lower()
        assert bool(lacking) == ("Not runnable" in text)


def test_only_the_recipes_that_say_so_send_pictures_away(miniatures: dict[str, Path]) -> None:
    for file in FILES:
        hosted = [
            name
            for name in yaml.safe_load(file.read_text())["model"]
            if models.load(name).engine == "hosted"
        ]
        assert bool(hosted) == file.stem.endswith("-gpt") == ("--allow-upload" in file.read_text())
    flags = {"dataset": str(miniatures["fairface"]), "output_dir": "nowhere"}
    (gpt,) = (file for file in FILES if file.stem == "table08-gpt")
    with pytest.raises(UsageError, match="needs --allow-upload"):
        run(resolve(flags, gpt), QUIET)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray", "stand_ins")
@pytest.mark.parametrize("table", RUN)
def test_the_recipes_of_a_table_fill_its_rows_in_one_run_folder(
    table: str, miniatures: dict[str, Path], tmp_path: Path
) -> None:
    flags = {"dataset": str(data_of(table, miniatures)), "output_dir": str(tmp_path / "run")}
    rows = [row for key in keys(table) for row in PAPER.tables[key].rows]
    for file in of_table(table):
        config = resolve(flags, file)
        plan(config, QUIET)
        run(config, QUIET)
    if any(RESNET in PAPER.models[row.model].cards for row in rows):
        assert f"--model {RESNET}" in of_table(table)[0].read_text()
        run(resolve({**flags, "model": [RESNET]}, of_table(table)[0]), QUIET)
    score(str(tmp_path / "run"), QUIET)
    document = json.loads((tmp_path / "run" / "scores" / "metrics.json").read_text())
    found = [each for each in beside(PAPER, [document]) if each.table in keys(table)]
    assert {each.model for each in found} == {row.model for row in rows}
    for each in found:
        assert (each.measured is None) is bool(each.not_runnable)
        if each.measured is not None:
            assert 0 < each.measured.n < each.n
            asked = [text for text in each.differences if text.startswith("Asked")]
            assert bool(asked) == ((table, each.model) == ("table10", "GPT-4o"))


def test_ls_names_the_recipes_as_run_takes_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["facescan", "ls", "recipes"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).resolve() for line in lines] == FILES
    assert all("arXiv 2410.24148" in line for line in lines)
