"""Parquet files that somebody made to do harm: refused before a row is read, and nothing done.

Every file carries a pickle which, loaded, makes a file: the canary. One test lets Ray and Arrow
read them without facescan, and sees the canary made.
"""

import base64
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facescan import shards, tabular
from facescan.errors import DataError
from facescan.shards import Contents, ShardRow, ShardWriter, pages

NAME, METADATA = b"ARROW:extension:name", b"ARROW:extension:metadata"


class MakesAFile:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._path),)


def valid_table(folder: Path, images: list[bytes] | None = None) -> pa.Table:
    """Rows as `facescan ingest` writes them."""
    with ShardWriter(folder, Contents("mine")) as writer:
        for number, data in enumerate(images or [b"an image"]):
            writer.add(ShardRow(f"face-{number}", "0" * 64, data, None, "test"))
    return pq.read_table(folder / "test-00000.parquet")


def extended(name: str, storage: pa.DataType, metadata: bytes, field: str = "extra") -> Any:
    """A field of an extension type, as a file that names one says it."""
    return pa.field(field, storage, metadata={NAME: name.encode(), METADATA: metadata})


Field = Callable[[bytes], Any]
PICKLED = "ray.data.arrow_pickled_object"
SHAPES = pa.struct([("data", pa.large_list(pa.int64())), ("shape", pa.list_(pa.int64()))])


def tensor(payload: bytes, field: str = "extra") -> Any:
    return extended("ray.data.arrow_tensor_v2", pa.large_list(pa.int64()), payload, field)


def objects(_: bytes, field: str = "extra") -> Any:
    return extended(PICKLED, pa.large_binary(), b"", field)


# What a file may declare; the values of all of them hold the pickle where they can.
EXTENSIONS: dict[str, Field] = {
    "ray tensor": lambda p: extended("ray.data.arrow_tensor", pa.list_(pa.int64()), p),
    "ray tensor, second version": tensor,
    "ray tensor of any shape": lambda p: extended(
        "ray.data.arrow_variable_shaped_tensor", SHAPES, p
    ),
    "ray tensor in a list": lambda p: pa.field("extra", pa.list_(tensor(p, "element"))),
    "ray tensor in a struct": lambda p: pa.field("extra", pa.struct([tensor(p, "inner")])),
    "ray object": objects,
    "ray object in a list": lambda p: pa.field("extra", pa.list_(objects(p, "element"))),
    "ray object in a struct": lambda p: pa.field("extra", pa.struct([objects(p, "inner")])),
    "ray object in a dictionary": lambda _: extended(
        PICKLED, pa.dictionary(pa.int32(), pa.large_binary()), b""
    ),
    "ray object in a struct in a list": lambda p: pa.field(
        "extra", pa.list_(pa.field("element", pa.struct([objects(p, "inner")])))
    ),
    "pickled type of old Arrow": lambda p: extended("arrow.py_extension_type", pa.int64(), p),
    "a type that nobody knows": lambda p: extended("some.vendor.type", pa.binary(), p),
    "a type of Arrow's own": lambda _: extended("arrow.json", pa.string(), b""),
}


def value(kind: pa.DataType, payload: bytes) -> Any:
    """Something of this type, with the pickle in it where there is room for bytes."""
    if pa.types.is_struct(kind):
        return {field.name: value(field.type, payload) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [value(kind.value_type, payload)]
    return 1 if pa.types.is_integer(kind) else "{}" if pa.types.is_string(kind) else payload


def with_column(table: pa.Table, field: Any, payload: bytes) -> pa.Table:
    cells = [value(field.type, payload)] * table.num_rows
    if pa.types.is_dictionary(field.type):
        column: Any = pa.array([payload] * table.num_rows, pa.large_binary()).dictionary_encode()
    else:
        column = pa.array(cells, field.type)
    return table.append_column(field, column)


def declared_in_the_footer_alone(table: pa.Table, schemas: list[pa.Schema], path: Path) -> None:
    """Plain columns; the footer's copies of Arrow's schema are these."""
    entries: list[Any] = [("ARROW:schema", base64.b64encode(each.serialize())) for each in schemas]
    entries = [*(table.schema.metadata or {}).items(), *entries]
    metadata: Any = pa.KeyValueMetadata(entries)  # type: ignore[arg-type] # keys may come twice
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)


def with_the_value_twice(path: Path, plain: pa.Schema) -> None:
    """Put a harmless schema before the one in the footer, under the same key.

    A reader of Thrift that takes what comes last takes the other one.
    """
    data = path.read_bytes()
    at = data.rindex(b"ARROW:schema") + len(b"ARROW:schema")
    harmless = base64.b64encode(plain.serialize())
    length = bytes(
        [len(harmless) & 0x7F | 0x80, len(harmless) >> 7 & 0x7F | 0x80, len(harmless) >> 14]
    )
    # The field that was the next is the same field once more, its number in full.
    footer = data[at:-8].replace(b"\x18", b"\x18" + length + harmless + b"\x08\x04", 1)
    before = int.from_bytes(data[-8:-4], "little")
    size = (before - len(data[at:-8]) + len(footer)).to_bytes(4, "little")
    path.write_bytes(data[:at] + footer + size + b"PAR1")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def hostile(tmp_path: Path, canary: Path) -> dict[str, Path]:
    """By what it declares: a file each."""
    table = valid_table(tmp_path / "valid")
    payload = pickle.dumps(MakesAFile(canary))
    files = {}
    for name, field in EXTENSIONS.items():
        files[name] = tmp_path / f"{name}.parquet"
        pq.write_table(with_column(table, field(payload), payload), files[name])

    plain = with_column(table, pa.field("extra", pa.large_list(pa.int64())), payload)
    lying = plain.schema.set(len(plain.schema) - 1, tensor(payload))
    for name, schemas in {
        "declared in the footer alone": [lying],
        "declared in the second of two schemas": [plain.schema, lying],
        "declared in the first of two schemas": [lying, plain.schema],
        "declared in the second of two values": [lying],
    }.items():
        files[name] = tmp_path / f"{name}.parquet"
        declared_in_the_footer_alone(plain, schemas, files[name])
    with_the_value_twice(files["declared in the second of two values"], plain.schema)

    files["declared of the file"] = tmp_path / "file.parquet"
    of_file: dict[bytes, bytes] = {NAME: b"ray.data.arrow_tensor", METADATA: payload}
    pq.write_table(table.replace_schema_metadata(of_file), files["declared of the file"])
    return files


def refusal(path: Path) -> str:
    """Why it is refused, by both who read Parquet that others made."""
    with pytest.raises(DataError) as as_shards:
        shards.open(str(path))
    with pytest.raises(DataError) as as_table:
        next(iter(tabular.read(path, str(path), [("image", "image")])))
    assert str(as_shards.value) == str(as_table.value)
    return str(as_shards.value)


def test_a_file_that_names_an_extension_type_is_refused(
    hostile: dict[str, Path], canary: Path
) -> None:
    assert len(hostile) >= 16
    for name, path in hostile.items():
        found = refusal(path)
        assert "extension types" in found or "a form that is not understood" in found, name
    assert not canary.exists()


# Ray's escape hatches: with them it unpickles what a file holds.
UNGUARDED = {
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "1",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR": "1",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE": "1",
}

_BESIDE_RAY = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
import ray.data
from facescan import shards
from facescan import tabular
from facescan.errors import DataError
canary, how, *paths = sys.argv[1:]
for path in paths:
    if how == "arrow":
        try:
            pq.read_table(path).to_pylist()
        except Exception:
            pass  # whatever pyarrow says of the file: only the canary tells whether code ran
        print(Path(canary).exists())
        if Path(canary).exists():
            Path(canary).rmdir()
        continue
    for read in (shards.open, lambda p: list(tabular.read(Path(p), p, [("image", "image")]))):
        try:
            read(path)
        except DataError as error:
            print("refused")
assert not Path(canary).exists()
"""


def beside_ray(canary: Path, how: str, paths: list[Path], env: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _BESIDE_RAY, str(canary), how, *map(str, paths)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_ray_in_the_process_and_its_escape_hatches_change_nothing(
    hostile: dict[str, Path], canary: Path
) -> None:
    """Unguarded, Ray's types unpickle what these files hold; the canary is a live one."""
    paths = list(hostile.values())
    fired = dict(zip(hostile, beside_ray(canary, "arrow", paths, UNGUARDED), strict=True))
    live = [name for name, made in fired.items() if made == "True"]
    assert len(live) >= 8, fired
    assert "declared in the second of two values" in live
    for env in ({}, UNGUARDED):
        assert beside_ray(canary, "facescan", paths, env) == ["refused"] * 2 * len(paths)
    assert not canary.exists()


@pytest.mark.slow
def test_the_commands_refuse_such_a_file_and_leave_the_canary(
    hostile: dict[str, Path], canary: Path, tmp_path: Path
) -> None:
    path = hostile["ray tensor, second version"]
    (tmp_path / "table.yaml").write_text("image: image\n")
    run = ["run", "--dataset", path, "--model", "fake", "--attributes", "race"]
    ingest = ["ingest", "table", "--source", path, "-C", tmp_path / "table.yaml"]
    for command in (run, ingest):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "jobs.cli",
                *map(str, command),
                "--output-dir",
                tmp_path / "out",
            ],
            env=os.environ | UNGUARDED,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode != 0
        assert "Arrow extension types" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    assert not canary.exists()


def test_what_pandas_says_of_its_objects_is_never_interpreted(tmp_path: Path, canary: Path) -> None:
    """Objects are text to Parquet; only `to_pandas` would look at what this says of them."""
    table = valid_table(tmp_path / "valid")
    payload = base64.b64encode(pickle.dumps(MakesAFile(canary))).decode()
    column = f'{{"name": "image_id", "pandas_type": "object", "numpy_type": "{payload}"}}'
    pandas = f'{{"columns": [{column}], "index_columns": [], "creator": {{}}}}'
    path = tmp_path / "pandas.parquet"
    metadata = {**(table.schema.metadata or {}), b"pandas": pandas.encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert shards.open(str(path)).rows == 1
    assert len(list(tabular.read(path, "t", [("image", "image")]))) == 1
    assert not canary.exists()


def footer_length(data: bytes) -> int:
    return int.from_bytes(data[-8:-4], "little")


def announcing(data: bytes, length: int) -> bytes:
    return data[:-8] + length.to_bytes(4, "little") + data[-4:]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda d: announcing(d, 2**32 - 1), id="longer than the file"),
        pytest.param(lambda d: announcing(d, len(d) - 11), id="longer by a byte than can be"),
        pytest.param(lambda d: announcing(d, footer_length(d) - 1), id="shorter by a byte"),
        pytest.param(lambda d: announcing(d, 0), id="of no length"),
        pytest.param(lambda d: announcing(d, 3), id="of three bytes"),
        pytest.param(lambda d: d[: -8 - footer_length(d)] + b"\xff" * footer_length(d) + d[-8:],
                     id="noise"),
        pytest.param(lambda d: d[: -8 - footer_length(d)] + bytes(footer_length(d)) + d[-8:],
                     id="zeros"),
        pytest.param(lambda d: d[: len(d) // 2], id="cut in the middle"),
        pytest.param(lambda d: d[:-1], id="cut by a byte"),
        pytest.param(lambda d: d[:-4] + b"PARE", id="encrypted"),
        pytest.param(lambda d: d[-8:], id="nothing but its length"),
        pytest.param(lambda d: b"PAR1" * 3, id="magic alone"),
    ],
)  # fmt: skip
def test_a_footer_that_lies_is_refused(tmp_path: Path, broken: Callable[[bytes], bytes]) -> None:
    valid_table(tmp_path / "valid")
    path = tmp_path / "broken.parquet"
    path.write_bytes(broken((tmp_path / "valid" / "test-00000.parquet").read_bytes()))
    assert str(path) in refusal(path)


def test_a_footer_too_long_for_any_table_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    with path.open("wb") as file:
        file.truncate(2**31)  # a hole, which takes no room on disk
        file.seek(0, os.SEEK_END)
        file.write((2**30).to_bytes(4, "little") + b"PAR1")
    assert "a footer of 1,073,741,824 bytes, limit" in refusal(path)


def plainly(table: pa.Table, path: Path, **options: Any) -> Path:
    """A file in which values can be found and changed in place."""
    settings: dict[str, Any] = {"compression": "none", "use_dictionary": False} | options
    pq.write_table(table, path, **settings)
    return path


def test_statistics_that_lie_about_the_split_are_found_out(tmp_path: Path) -> None:
    table = valid_table(tmp_path / "valid")
    path = plainly(table, tmp_path / "lying.parquet")
    data = path.read_bytes()
    body, footer = data[: -8 - footer_length(data)], data[-8 - footer_length(data) :]
    path.write_bytes(body.replace(b"test", b"rest") + footer)
    with pytest.raises(DataError, match="rows of other splits than 'test'"):
        shards.open(str(path))


@pytest.mark.parametrize("text", [b"test", b"face-0"])
def test_what_is_no_text_where_there_must_be_text_is_refused(tmp_path: Path, text: bytes) -> None:
    path = plainly(valid_table(tmp_path / "valid"), tmp_path / "bytes.parquet")
    path.write_bytes(path.read_bytes().replace(text, b"\xff" * len(text)))
    with pytest.raises(DataError, match=str(path)):
        shards.open(str(path))


def test_a_footer_that_announces_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    path = plainly(valid_table(tmp_path / "valid"), tmp_path / "lying.parquet")
    group = shards.open(str(path)).row_groups[0]
    opened = shards.open(str(path))
    more = type(group)(group.path, group.index, group.rows + 1, group.bytes, group.split)
    with pytest.raises(DataError, match="1 rows, but the footer says 2"):
        list(opened.read([more], ["image_id"]))


def announcing_a_page_of(size: int, path: Path) -> None:
    """Lie in the header of the image's first page about its size when uncompressed."""
    with pq.ParquetFile(path) as parquet:
        group = parquet.metadata.row_group(0)
        columns = [group.column(n) for n in range(group.num_columns)]
    at = next(c.data_page_offset for c in columns if c.path_in_schema == "image.bytes")
    data = bytearray(path.read_bytes())
    assert data[at + 2] == 0x15, "the second field of the header, an integer"
    assert data[at + 3] & data[at + 4] & 0x80, "of three bytes"
    number = size << 1
    data[at + 3 : at + 6] = bytes([number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14])
    path.write_bytes(data)


def read_failure(path: Path, columns: list[str]) -> str:
    """Why the rows are refused, by both who read them; the footer must be right."""
    with pytest.raises(DataError) as caught:
        next(iter(tabular.read(path, str(path), [(name, name) for name in columns])))
    opened = shards.open(str(path))
    with pytest.raises(DataError) as as_shards:
        next(opened.read(opened.row_groups, columns))
    assert str(as_shards.value) == str(caught.value)
    return str(caught.value)


def test_a_page_that_announces_too_much_is_refused_before_arrow_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 500_000)
    table = valid_table(tmp_path / "valid", [bytes(20_000)])
    path = plainly(table, tmp_path / "lying.parquet", compression="zstd")
    announcing_a_page_of(900_000, path)
    assert "column 'image.bytes': a page of 900,000 bytes, limit 500,000" in read_failure(
        path, ["image"]
    )


def test_a_value_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 500_000)
    path = tmp_path / "bomb.parquet"
    pq.write_table(valid_table(tmp_path / "valid", [bytes(2_000_000)]), path, compression="zstd")
    assert path.stat().st_size < 10_000
    assert "a page of 2,000" in read_failure(path, ["image"])


def test_a_column_of_lists_is_refused_as_one_row_could_hold_them_all(tmp_path: Path) -> None:
    table = valid_table(tmp_path / "valid").append_column("extra", pa.array([[1, 2, 3]]))
    path = plainly(table, tmp_path / "lists.parquet")
    with pytest.raises(DataError, match=r"column 'extra\.list\.element' holds lists"):
        shards.open(str(path))
    columns = [("image", "image"), ("extra", "extra")]
    with pytest.raises(DataError, match=r"column 'extra\.list\.element' holds lists"):
        next(iter(tabular.read(path, str(path), columns)))


def sizes_read(path: Path) -> list[int]:
    opened = shards.open(str(path))
    return [table.num_rows for table in opened.read(opened.row_groups, ["image"])]


def test_what_a_small_file_repeats_is_read_in_small_tables(tmp_path: Path) -> None:
    """A dictionary counts a value once: 1,000 rows of the same 90 KB are 90 MB, not 90 KB."""
    table = valid_table(tmp_path / "valid", [b"x" * 90_000] * 2)
    rows = pa.concat_tables([table] * 500).combine_chunks()
    settings: list[dict[str, Any]] = [
        {"use_dictionary": True, "dictionary_pagesize_limit": 200_000},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}},
    ]
    for options in settings:
        path = tmp_path / "same.parquet"
        pq.write_table(rows, path, compression="zstd", **options)
        assert path.stat().st_size < 100_000
        assert max(sizes_read(path)) * 90_000 <= 64 * 2**20
        assert sum(sizes_read(path)) == 1_000


def test_rows_of_very_different_sizes_are_never_taken_many_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On average 4,000 bytes, but the large ones stand together."""
    monkeypatch.setattr(pages, "_MAX_BATCH_BYTES", 500_000)
    monkeypatch.setattr(pages, "BATCH_BYTES", 400_000)
    images = [b""] * 490 + [b"x" * 200_000] * 10
    table = valid_table(tmp_path / "valid", images)
    path = plainly(table, tmp_path / "uneven.parquet", data_page_size=1, write_batch_size=1)
    opened = shards.open(str(path))
    tables = list(opened.read(opened.row_groups, ["image"]))
    assert max(table.nbytes for table in tables) < 600_000
    assert sum(table.num_rows for table in tables) == 500


def test_noise_in_a_file_is_refused_or_read_but_raises_nothing_else(tmp_path: Path) -> None:
    """Footers and page headers, a byte or a few changed; in this process, which must live on."""
    path = plainly(valid_table(tmp_path / "valid", [b"an image", b"", b"another"] * 5),
                   tmp_path / "noise.parquet")  # fmt: skip
    good = path.read_bytes()
    random = np.random.default_rng(3)
    refused = 0
    for number in range(1_500):
        data = bytearray(good)
        footer = len(data) - footer_length(good) - 8
        start, end = (footer, len(data)) if number % 3 else (0, footer)
        for at in random.integers(start, end, random.integers(1, 4)):
            data[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))])
        path.write_bytes(data)
        try:
            opened = shards.open(str(path))
            for _ in opened.read(opened.row_groups, ["image_id", "image"]):
                pass
            for _ in tabular.read(path, "t", [("image", "image"), ("id", "image_id")]):
                pass
        except DataError:
            refused += 1
    assert refused > 700


def one_row_group(path: Path, megabytes: int) -> int:
    """Shards of one row group, its images 16 KB of noise each; how many."""
    noise = np.random.default_rng(0).bytes(64_000_000)
    offsets = np.arange(4_001, dtype=np.int32) * 16_000
    images = pa.Array.from_buffers(
        pa.binary(), 4_000, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(noise)]
    )
    table = valid_table(path.parent / "valid", [b"an image"] * 4_000)
    paths = pa.nulls(4_000, pa.string())
    image = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
    position = table.schema.get_field_index("image")
    part = table.set_column(position, table.schema.field("image"), image)
    whole = pa.concat_tables([part] * (megabytes // 64))
    pq.write_table(
        whole, path, row_group_size=whole.num_rows, compression="zstd", use_dictionary=False
    )
    assert pq.read_metadata(path).num_row_groups == 1
    return whole.num_rows


_READ_ALL = """
import sys
from pathlib import Path
from facescan import shards
from facescan import tabular
how, path = sys.argv[1:]
if how == "shards":
    opened = shards.open(path)
    rows = sum(table.num_rows for table in opened.read(opened.row_groups, ["image_id", "image"]))
else:
    rows = sum(1 for _ in tabular.read(Path(path), path, [("image", "image")]))
status = Path("/proc/self/status").read_text()
peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
print(rows, int(peak.split()[1]) // 1024)
"""


@pytest.mark.slow
def test_a_row_group_larger_than_memory_is_streamed(tmp_path: Path) -> None:
    """640 MB here; with 2,240 the peaks were the same."""
    rows = one_row_group(tmp_path / "one.parquet", 640)
    for how in ("shards", "table"):
        done = subprocess.run(
            [sys.executable, "-c", _READ_ALL, how, str(tmp_path / "one.parquet")],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found, peak_mib = map(int, done.stdout.split())
        assert found == rows
        assert peak_mib < 400, how
