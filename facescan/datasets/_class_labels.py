"""What the numbers in a Hugging Face `ClassLabel` column stand for.

Repositories of one dataset number their labels differently, so an order is never assumed: it is
taken from the Parquet file's own metadata, or else from the README.md of the repository.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from facescan.errors import DataError

METADATA_KEY = b"huggingface"
README = "README.md"

NO_LABEL = -1
"""The number of rows without a label."""


def names(schema: pa.Schema, column: str, root: Path, file: str) -> tuple[str, ...]:
    """The labels of a column of numbers, in the order of their numbers.

    Args:
        schema: of the Parquet file.
        column: in it.
        root: the folder of the repository.
        file: the Parquet file's path below `root`, which may name the configuration it belongs to.

    Raises:
        DataError: nothing says what the numbers stand for, or the README.md says two things or
            cannot be read.
    """
    features = _item(_item(_metadata(schema, file), "info"), "features")
    if found := _in_order(_item(_item(features, column), "names")):
        return found
    return _in_readme(column, root, file)


def _metadata(schema: pa.Schema, file: str) -> Any:
    text = (schema.metadata or {}).get(METADATA_KEY)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: its metadata '{METADATA_KEY.decode()}' is no JSON") from error


def _in_readme(column: str, root: Path, file: str) -> tuple[str, ...]:
    by_configuration = dict(_configurations(column, root))
    named = [found for name, found in by_configuration.items() if name in Path(file).parts]
    found = set(named or by_configuration.values())
    if len(found) == 1:
        return found.pop()
    if found:
        raise DataError(
            f"{root / README}: numbers the labels of '{column}' in several ways "
            f"({', '.join(sorted(by_configuration))}), and {file} lies in no folder of these names"
        )
    raise DataError(
        f"{file}: the column '{column}' holds numbers, and nothing says what they stand for: "
        f"neither the file's metadata '{METADATA_KEY.decode()}' nor `dataset_info` at the top of "
        f"{root / README}; put the README.md of the repository there"
    )


def _configurations(column: str, root: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each configuration that numbers the column: its name, and the labels in order."""
    path = root / README
    if not path.is_file():
        return
    try:
        # Between the first two lines of dashes.
        _, front, *_ = path.read_text(encoding="utf-8").split("---\n", 2)
        described = _item(yaml.safe_load(front), "dataset_info")
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: does not begin with YAML between lines of `---`") from error
    for configuration in described if isinstance(described, list) else [described]:
        for feature in _item(configuration, "features") or ():
            if _item(feature, "name") == column:
                found = _in_order(_item(_item(_item(feature, "dtype"), "class_label"), "names"))
                if found:
                    yield str(_item(configuration, "config_name")), found


def _in_order(given: Any) -> tuple[str, ...]:
    """The labels of a list, or of a map from numbers as text; none where it is neither."""
    if isinstance(given, Mapping):
        numbered = {str(number): label for number, label in given.items()}
        given = [numbered.get(str(number)) for number in range(len(numbered))]
    if not isinstance(given, Sequence) or not all(isinstance(label, str) for label in given):
        return ()
    return tuple(given)


def _item(given: Any, key: str) -> Any:
    return given.get(key) if isinstance(given, Mapping) else None
