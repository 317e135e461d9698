import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from facescan.datasets import Rejected, Source, SourceRow, table
from facescan.errors import DataError, UnknownNameError, UsageError


def read(path: Path, wanted: str | None = None, **options: Any) -> list[SourceRow | Rejected]:
    chosen = table.TableOptions.model_validate(options)
    dataset = table.DATASET.described(chosen)
    return list(dataset.rows(Source(path, wanted, chosen)))


def rows(path: Path, wanted: str | None = None, **options: Any) -> list[SourceRow]:
    found = read(path, wanted, **options)
    assert all(isinstance(row, SourceRow) for row in found)
    return [row for row in found if isinstance(row, SourceRow)]


def refusal(path: Path, wanted: str | None = None, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read(path, wanted, **options)
    return str(caught.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a CSV in it, as somebody might have it."""
    (tmp_path / "faces.csv").write_text(
        "file,ethnicity,sex,age,person,site,fold\n"
        'a/1.jpg,White,male,31,007,"north, old",train\n'
        "a/2.jpg,,Female,,008,,test\n"
        "\n"
        "b/3.jpg,seasian, FEMALE ,4.5,008,south,test\n",
        encoding="utf-8",
    )
    return tmp_path


ALL_COLUMNS: dict[str, Any] = {
    "name": "my-faces",
    "image": "file",
    "labels": {
        "race": {
            "column": "ethnicity",
            "label_set": "race-7",
            "map": {"seasian": "Southeast Asian"},
        },
        "gender": "sex",
    },
    "values": {"years": "age"},
    "groups": {"site": "site"},
    "subject": "person",
    "split": "fold",
}


def test_columns_become_what_the_options_say(source: Path) -> None:
    assert rows(source, **ALL_COLUMNS) == [
        SourceRow(
            where="faces.csv, line 2",
            image_id="a/1.jpg",
            image="a/1.jpg",
            split="train",
            subject_id="007",
            labels={"race": "White", "gender": "Male"},
            values={"years": 31.0},
            groups={"site": "north, old"},
        ),
        SourceRow(
            where="faces.csv, line 3",
            image_id="a/2.jpg",
            image="a/2.jpg",
            split="test",
            subject_id="008",
            labels={"race": None, "gender": "Female"},
            values={"years": None},
            groups={"site": None},
        ),
        SourceRow(
            where="faces.csv, line 5",
            image_id="b/3.jpg",
            image="b/3.jpg",
            split="test",
            subject_id="008",
            labels={"race": "Southeast Asian", "gender": "Female"},
            values={"years": 4.5},
            groups={"site": "south"},
        ),
    ]


def test_the_options_describe_the_dataset() -> None:
    options = table.TableOptions.model_validate(
        ALL_COLUMNS | {"licence": "CC0", "revision": "March"}
    )
    dataset = table.DATASET.described(options)
    assert dataset.name == "my-faces"
    assert dataset.label_sets == {"race": "race-7", "gender": "gender-2"}
    assert (dataset.values, dataset.groups) == (("years",), ("site",))
    assert (dataset.licence, dataset.revision) == ("CC0", "March")


def test_the_table_itself_can_be_the_source(source: Path) -> None:
    assert rows(source / "faces.csv", **ALL_COLUMNS) == rows(source, **ALL_COLUMNS)


def test_one_split_can_be_asked_for(source: Path) -> None:
    assert [row.image_id for row in rows(source, "test", **ALL_COLUMNS)] == ["a/2.jpg", "b/3.jpg"]
    assert "no split 'val'; known: test, train" in refusal(source, "val", **ALL_COLUMNS)


def test_without_a_column_all_rows_are_of_one_split(source: Path) -> None:
    assert {row.split for row in rows(source, image="file")} == {"all"}
    fixed = rows(source, image="file", split={"value": "test"})
    assert {row.split for row in fixed} == {"test"}


def test_an_id_column_is_taken_as_text(source: Path) -> None:
    (source / "faces.csv").write_text("file,key\n1.jpg,007\n2.jpg,7\n")
    assert [row.image_id for row in rows(source, image="file", id="key")] == ["007", "7"]
    (source / "faces.csv").write_text("file,key\n1.jpg,\n")
    assert refusal(source, image="file", id="key") == "faces.csv, line 2: no image id"


def test_tabs_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    (tmp_path / "faces.tsv").write_text("\ufefffile\tsex\n1.jpg\tMale\n", encoding="utf-8")
    (row,) = rows(tmp_path, image="file", labels={"gender": "sex"})
    assert (row.image_id, row.labels) == ("1.jpg", {"gender": "Male"})


def test_map_keys_may_be_numbers_and_values_null(source: Path) -> None:
    (source / "faces.csv").write_text("file,sex\n1.jpg,0\n2.jpg,1\n3.jpg,9\n")
    mapped = {"column": "sex", "map": {0: "Male", 1: "Female", 9: None}}
    found = [row.labels["gender"] for row in rows(source, image="file", labels={"gender": mapped})]
    assert found == ["Male", "Female", None]


def test_an_unknown_label_is_refused_with_file_row_value_and_the_allowed(source: Path) -> None:
    (source / "faces.csv").write_text("file,sex\n1.jpg,Male\n2.jpg,Martian\n")
    assert (
        refusal(source, image="file", labels={"gender": "sex"})
        == "faces.csv, line 3: gender 'Martian' is not a label of gender-2; allowed: Male, Female"
    )


def test_what_is_no_number_is_refused_with_file_and_row(source: Path) -> None:
    for text in ("old", "inf", "1e999"):
        (source / "faces.csv").write_text(f"file,age\n1.jpg,nan\n2.jpg,{text}\n")
        assert refusal(source, image="file", values={"years": "age"}) == (
            f"faces.csv, line 3: '{text}' in column 'age' is not a number"
        )


def test_a_missing_column_is_refused_before_the_first_row(source: Path) -> None:
    options = table.TableOptions.model_validate(ALL_COLUMNS | {"groups": {"site": "clinic"}})
    found = table.DATASET.described(options).rows(Source(source, None, options))
    with pytest.raises(DataError) as caught:
        next(found)
    assert str(caught.value) == (
        "faces.csv: no column 'clinic' (groups: site); "
        "columns: file, ethnicity, sex, age, person, site, fold"
    )


def test_a_table_without_word_of_its_image_column_says_what_to_write(source: Path) -> None:
    message = refusal(source)
    assert "`image: COLUMN`" in message
    assert "file, ethnicity" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,file\n1.jpg,2.jpg\n", "more than one column 'file'"),
        ("file,sex\n1.jpg\n", "line 2: 1 cells, but the header has 2"),
        ('file,sex\n1.jpg,"male\n', "after line 2"),
        ("file,sex\n1.jpg,m\xe4nnlich\n", "after line"),
        ("", "no column 'file'"),
    ],
    ids=["header twice", "short row", "open quote", "not UTF-8", "empty"],
)
def test_a_damaged_csv_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "faces.csv").write_bytes(text.encode("latin-1"))
    found = refusal(tmp_path, image="file", labels={"gender": "sex"} if "sex" in text else {})
    assert found.startswith("faces.csv")
    assert message in found


def test_of_several_tables_one_is_named(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(f"file\n{name}.jpg\n")
    assert "several tables; say which with `table:` (test.csv, train.csv)" in refusal(
        tmp_path, image="file"
    )
    assert [r.image_id for r in rows(tmp_path, image="file", table="train.csv")] == [
        "train.csv.jpg"
    ]
    assert [r.where for r in rows(tmp_path, image="file", table="t*.csv")] == [
        "test.csv, line 2",
        "train.csv, line 2",
    ]
    assert "no file 'val.csv'" in refusal(tmp_path, image="file", table="val.csv")
    for outside in ("../x.csv", "/etc/x.csv"):
        assert "below the source" in refusal(tmp_path, image="file", table=outside)


def test_parquet_images_are_paths_bytes_or_both(tmp_path: Path) -> None:
    both = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = [
        {"bytes": b"one", "path": "1.jpg"},
        {"bytes": None, "path": "2.jpg"},
        None,
        {"bytes": b"four", "path": None},
    ]
    for column, expected in (
        (
            pa.array(structs, both),
            [
                ("1.jpg", b"one"),
                ("2.jpg", "2.jpg"),
                ("faces.parquet, row 3", None),
                ("faces.parquet, row 4", b"four"),
            ],
        ),
        (pa.array(["1.jpg", None]), [("1.jpg", "1.jpg"), ("faces.parquet, row 2", None)]),
        (pa.array([b"one"], pa.large_binary()), [("faces.parquet, row 1", b"one")]),
    ):
        pq.write_table(pa.table({"image": column}), tmp_path / "faces.parquet")
        found = [(row.image_id, row.image) for row in rows(tmp_path, image="image")]
        assert found == expected


def test_parquet_cells_of_any_type_are_read(tmp_path: Path) -> None:
    cells = {
        "image": ["1.jpg", "2.jpg"],
        "label": pa.array([0, None], pa.int8()),
        "years": [31, None],
        "site": [7, 8],
        "score": [math.nan, 0.5],
    }
    pq.write_table(pa.table(cells), tmp_path / "faces.parquet")
    first, second = rows(
        tmp_path,
        image="image",
        labels={"gender": {"column": "label", "map": {0: "Female"}}},
        values={"years": "years", "score": "score"},
        groups={"site": "site"},
    )
    assert (first.labels, first.values) == ({"gender": "Female"}, {"years": 31, "score": None})
    assert (second.labels, second.values) == ({"gender": None}, {"years": None, "score": 0.5})
    assert first.groups == {"site": "7"}


def test_an_image_column_of_numbers_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1]}), tmp_path / "faces.parquet")
    assert "row 1: the image is neither a path nor bytes" in refusal(tmp_path, image="image")


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "faces.parquet").write_text("file,sex\n")
    assert "faces.parquet: not a Parquet file" in refusal(tmp_path, image="file")
    (tmp_path / "faces.xlsx").touch()
    assert "neither of .csv, .parquet, .tsv" in refusal(tmp_path / "faces.xlsx", image="file")


def test_a_plain_folder_is_images_without_labels(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.webp", "c/d/phone.heic", "notes.txt", ".x/y.jpg", ".z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = read(tmp_path)
    assert found == [
        SourceRow("a.webp", "a.webp", "a.webp", "all"),
        Rejected("notes.txt", "not_an_image_file"),
        SourceRow("b/1.jpg", "b/1.jpg", "b/1.jpg", "all"),
        SourceRow("b/2.PNG", "b/2.PNG", "b/2.PNG", "all"),
        SourceRow("c/d/phone.heic", "c/d/phone.heic", "c/d/phone.heic", "all"),
    ]
    assert "no table in it" in refusal(tmp_path, image="file")


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "options",
    [
        {"images": "file"},
        {"labels": {"race": {"column": "x", "labels": "race-7"}}},
        {"name": "../x"},
        {"values": {"a b": "x"}},
        {"split": {"column": "x"}},
        {"labels": {"race": ["x"]}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        table.TableOptions.model_validate(options)


def test_labels_are_held_to_the_attributes_there_are(source: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown attribute 'rase'"):
        read(source, image="file", labels={"rase": "ethnicity"})
    assert "say which label_set it is in: race-7" in refusal(
        source, image="file", labels={"race": "ethnicity"}
    )
    assert "has no label set 'race-5'" in refusal(
        source, image="file", labels={"race": {"column": "ethnicity", "label_set": "race-5"}}
    )
    assert "map: 'Elf' is not a label of gender-2; allowed: Male, Female" in refusal(
        source, image="file", labels={"gender": {"column": "sex", "map": {"x": "Elf"}}}
    )


def test_the_documented_yaml_is_valid() -> None:
    documentation = Path(__file__).parents[2] / "docs" / "datasets.md"
    text = documentation.read_text().split("```yaml\n")[1].split("```")[0]
    options = table.TableOptions.model_validate(yaml.safe_load(text))
    assert set(options.model_dump()) == set(yaml.safe_load(text)), "every option is documented"
    assert table.DATASET.described(options).label_sets == {"gender": "gender-2", "race": "race-7"}
