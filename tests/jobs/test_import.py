"""facescan import RUN: other people's predictions become a run that is verified and scored."""

import csv
import hashlib
import json
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from facescan import shards
from facescan.errors import DataError, MixingError, UsageError
from facescan.run import folder, manifest
from facescan.shards import Contents, ShardRow, ShardWriter
from jobs.compare import compare_runs
from jobs.import_ import Source, import_predictions
from jobs.report import report
from jobs.score import score
from jobs.verify import verify_run
from tests.conftest import RACES, MakeShards, jpeg
from tests.facescan.test_foreign import FACE, FAIRFACE, REAL


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def source(file: Path, **others: Any) -> Source:
    given: dict[str, Any] = {
        "format": "table",
        "model": "theirs",
        "protocol": "imported",
        "no_face": False,
        "columns": {"id": "file", "labels": {"race": "pred"}},
        "config": None,
    }
    return Source(file=file, **(given | others))


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "pred"), *rows])
    return path


def predictions(run: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(run / "predictions" / name).to_pylist()


def named_shards(path: Path, *image_ids: str) -> Path:
    with ShardWriter(path, Contents("named", {"race": "race-7"})) as writer:
        for number, image_id in enumerate(image_ids):
            data = jpeg(number)
            writer.add(
                ShardRow(
                    image_id=image_id,
                    image_sha256=hashlib.sha256(data).hexdigest(),
                    data=data,
                    path=image_id,
                    split="val",
                    labels={"race": "White"},
                )
            )
    return path


def test_a_table_becomes_a_run_that_is_sound_and_scored(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    data = make_shards(20)
    rows = [(f"image-{n:04d}", RACES[n % 4] if n % 5 else "black") for n in range(20)]
    file = table(tmp_path / "theirs.csv", rows)
    run = tmp_path / "run"
    import_predictions(str(run), source(file), quiet(), dataset=str(data), split=None)
    assert verify_run(str(run), quiet())
    found = predictions(run, "theirs.imported.race.parquet")
    assert [row["outcome"] for row in found] == ["answered"] * 20
    assert found[0]["label"] == "Black"
    (entry, *_) = json.loads(score(str(run), quiet()).read("metrics.json"))["scores"]
    right = sum(label.casefold() == RACES[n % 4].casefold() for n, (_, label) in enumerate(rows))
    assert (entry["model"], entry["n"], entry["n_correct"]) == ("theirs", 20, right)
    record = manifest.read(folder.existing(str(run)))
    imported = record.combinations[0].imported
    assert imported is not None
    assert imported.file == "theirs.csv"
    assert imported.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_does_not_fit_is_counted_and_named(tmp_path: Path, make_shards: MakeShards) -> None:
    data = make_shards(6, data={5: jpeg(4)})
    rows = [
        ("image-0000", "White"),
        ("image-0000", "White"),
        ("image-0000", "Black"),
        ("image-0001", "Martian"),
        ("image-0002", "Asian"),
        ("image-0003", ""),
        ("image-0004", "White"),
        ("image-0005", "Black"),
        ("elsewhere", "White"),
        ("", "White"),
    ]
    console = quiet()
    run = tmp_path / "run"
    file = table(tmp_path / "theirs.csv", rows)
    import_predictions(str(run), source(file), console, dataset=str(data), split=None)
    said = text(console)
    assert "10 rows" in said
    assert "rows of images that are not here: 2 (, elsewhere)" in said
    assert "say the same: 1 (image-0000)" in said
    assert "say something else; the first counts: 1 (image-0000)" in said
    assert "bytes of another one that has another answer; the first counts: 1 (image-0005)" in said
    assert "no label of race-7: unparsed: 2 ('' 1, 'Martian' 1)" in said
    assert "no label of race-7: off_list: 1 ('Asian' 1)" in said
    found = predictions(run, "theirs.imported.race.parquet")
    assert [(row["outcome"], row["label"]) for row in found] == [
        ("answered", "White"),
        ("unparsed", None),
        ("off_list", None),
        ("unparsed", None),
        ("answered", "White"),
        ("answered", "White"),
    ]
    assert verify_run(str(run), quiet())
    imported = manifest.read(folder.existing(str(run))).combinations[0].imported
    assert imported is not None
    assert imported.counted["rows of images that are not here"] == 2


@pytest.mark.parametrize(("no_face", "outcome"), [(False, "pending"), (True, "no_face")])
def test_images_without_a_row_end_as_is_said(
    tmp_path: Path, make_shards: MakeShards, no_face: bool, outcome: str
) -> None:
    file = table(tmp_path / "theirs.csv", [("image-0001", "Black")])
    console = quiet()
    run = tmp_path / "run"
    given = source(file, no_face=no_face)
    import_predictions(str(run), given, console, dataset=str(make_shards(3)), split=None)
    found = predictions(run, "theirs.imported.race.parquet")
    assert [row["outcome"] for row in found] == [outcome, "answered", outcome]
    assert "images without a row: 2 (image-0000, image-0002)" in text(console)
    assert verify_run(str(run), quiet())


def test_fairface_s_output_finds_pictures_by_their_names(tmp_path: Path) -> None:
    data = named_shards(tmp_path / "shards", "val/1.jpg", "val/2.jpg", "val/3.jpg")
    header, body = FAIRFACE.split("\n", 1)
    faces = ("2_face1", "2_face0", "1_face0", "9_face0")
    file = tmp_path / "out.csv"
    others = [body.replace("1_face0", name) for name in faces]
    file.write_text(f"{header}\n{others[0].replace('Indian', 'White')}{''.join(others[1:])}")
    console = quiet()
    run = tmp_path / "run"
    given = source(file, format="fairface", columns={})
    import_predictions(str(run), given, console, dataset=str(data), split="val")
    race = predictions(run, "theirs.imported.race.parquet")
    assert [(row["image_id"], row["label"]) for row in race] == [
        ("val/1.jpg", "Indian"),
        ("val/2.jpg", "Indian"),
        ("val/3.jpg", None),
    ]
    assert race[0]["probability"] == pytest.approx(0.5)
    assert predictions(run, "theirs.imported.age.parquet")[0]["label"] == "more than 70"
    assert "rows about further faces of an image: 1" in text(console)
    assert "rows of images that are not here: 1 (detected/9_face0.jpg)" in text(console)
    assert verify_run(str(run), quiet())


def test_a_name_that_several_images_have_is_nobody_s(tmp_path: Path) -> None:
    data = named_shards(tmp_path / "shards", "train/1.jpg", "val/1.jpg", "val/2.jpg")
    file = tmp_path / "out.csv"
    header, body = FAIRFACE.split("\n", 1)
    file.write_text(f"{header}\n{body}{body.replace('1_face0', '2_face0')}")
    console = quiet()
    given = source(file, format="fairface", columns={})
    import_predictions(str(tmp_path / "run"), given, console, dataset=str(data), split=None)
    assert "rows whose name several images have: 1 (detected/1_face0.jpg)" in text(console)


@pytest.mark.skipif(not REAL.is_file(), reason="FairFace's output is not here")
def test_fairface_s_real_output_is_imported(tmp_path: Path) -> None:
    names = sorted(path.name for path in (REAL.parent / "crops").glob("*.jpg"))
    data = named_shards(tmp_path / "shards", *names)
    run = tmp_path / "run"
    given = source(REAL, format="fairface", columns={}, model="fairface-resnet34")
    import_predictions(str(run), given, quiet(), dataset=str(data), split=None)
    for attribute in ("race", "gender", "age"):
        found = predictions(run, f"fairface-resnet34.imported.{attribute}.parquet")
        assert Counter(row["outcome"] for row in found) == {"answered": len(names)}
        assert all(row["probability"] > 0.3 for row in found)
    assert verify_run(str(run), quiet())


def test_deepface_s_answers_are_imported_with_their_probabilities(tmp_path: Path) -> None:
    data = named_shards(tmp_path / "shards", "val/1.jpg", "val/2.jpg")
    file = tmp_path / "out.json"
    file.write_text(json.dumps({"photos/1.jpg": [FACE], "photos/2.jpg": []}))
    run = tmp_path / "run"
    given = source(file, format="deepface", columns={})
    import_predictions(str(run), given, quiet(), dataset=str(data), split=None)
    found = {
        name: predictions(run, f"theirs.imported.{name}.parquet")
        for name in ("race", "gender", "emotion", "age")
    }
    labels = {name: rows[0]["label"] for name, rows in found.items()}
    assert labels == {
        "race": "Latino_Hispanic",
        "gender": "Male",
        "emotion": "anger",
        "age": "30-39",
    }
    assert found["race"][0]["probability"] == pytest.approx(0.4)
    assert {rows[1]["outcome"] for rows in found.values()} == {"no_face"}
    assert verify_run(str(run), quiet())


def test_several_models_share_a_run_and_are_compared(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    data, run = make_shards(8), str(tmp_path / "run")
    right = [(f"image-{n:04d}", RACES[n % 4]) for n in range(8)]
    wrong = [(f"image-{n:04d}", "Indian") for n in range(8)]
    first, second = table(tmp_path / "1.csv", right), table(tmp_path / "2.csv", wrong)
    import_predictions(run, source(first), quiet(), dataset=str(data), split=None)
    other = source(second, model="others")
    import_predictions(run, other, quiet(), dataset=None, split=None)
    assert verify_run(run, quiet())
    (found,) = compare_runs([run], quiet(), views=["race-7"])
    assert (found.a.model, found.a_only, found.b_only) == ("others", 0, 6)


def test_the_same_command_again_changes_nothing_and_another_file_is_refused(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    data, run = make_shards(4), tmp_path / "run"
    file = table(tmp_path / "theirs.csv", [("image-0001", "Black")])
    for _ in range(2):
        import_predictions(str(run), source(file), quiet(), dataset=str(data), split=None)
        assert verify_run(str(run), quiet())
    before = predictions(run, "theirs.imported.race.parquet")
    table(file, [("image-0001", "White")])
    with pytest.raises(MixingError, match="model theirs, protocol imported, attribute race"):
        import_predictions(str(run), source(file), quiet(), dataset=str(data), split=None)
    assert predictions(run, "theirs.imported.race.parquet") == before


def test_a_report_claims_nothing_of_how_imported_answers_were_asked(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    run = str(tmp_path / "run")
    rows = [(f"image-{n:04d}", "Black" if n else "black") for n in range(8)]
    first = table(tmp_path / "1.csv", [*rows, ("elsewhere", "White")])
    second = table(tmp_path / "2.csv", rows)
    import_predictions(run, source(first), quiet(), dataset=str(make_shards(8)), split=None)
    import_predictions(run, source(second, model="others"), quiet(), dataset=None, split=None)
    score(run, quiet())
    told = report([run], None, quiet())
    page, text = (told.read(name).decode() for name in ("index.html", "report.md"))
    for shown in (page, text):
        for file in (first, second):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert f"Imported from {file.name} (sha256 {digest})" in shown
        assert shown.count("how it was asked is not known") == 2
        assert "rows of images that are not here: 1" in shown
        assert "rows: 9" in shown
        assert "images answered about: 8" in shown
        assert "temperature" not in shown
        assert "Prompt, as sent" not in shown
        assert "Offered for" not in shown
    assert "| theirs | not known | imported | not known | not known |" in text


def test_a_run_of_other_images_takes_nothing(tmp_path: Path, make_shards: MakeShards) -> None:
    file = table(tmp_path / "theirs.csv", [("image-0001", "Black")])
    run = str(tmp_path / "run")
    import_predictions(run, source(file), quiet(), dataset=str(make_shards(4)), split=None)
    other = make_shards(5, name="other")
    with pytest.raises(MixingError, match="dataset digest"):
        import_predictions(
            run, source(file, model="others"), quiet(), dataset=str(other), split=None
        )


def test_flags_and_files_that_cannot_work_are_refused_and_leave_nothing(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    data = str(make_shards(2))
    run = tmp_path / "run"
    file = table(tmp_path / "theirs.csv", [("nobody", "Black")])

    def refused(given: Source, dataset: str | None = data) -> str:
        with pytest.raises((UsageError, DataError)) as error:
            import_predictions(str(run), given, quiet(), dataset=dataset, split=None)
        assert not (run / "manifest.json").exists()
        return str(error.value)

    assert "--dataset is required" in refused(source(file), None)
    assert "no row is of an image" in refused(source(file))
    assert "such as image-0000, image-0001" in refused(source(file))
    assert "no such file" in refused(source(tmp_path / "no.csv"))
    assert "--id" in refused(source(file, columns={"labels": {"race": "pred"}}))
    assert "says itself" in refused(source(file, format="fairface"))
    assert "no column 'x' (race)" in refused(
        source(file, columns={"id": "file", "labels": {"race": "x"}})
    )
    good = table(tmp_path / "good.csv", [("image-0000", "Black")])
    import_predictions(str(run), source(good), quiet(), dataset=data, split=None)
    assert shards.open(data).rows == 2
