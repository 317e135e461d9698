"""Copies are found by their bytes and by their hashes, and the search misses nothing."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facescan import duplicates, fingerprints
from facescan.duplicates import Copies
from facescan.errors import DataError
from facescan.fingerprints import SIDE, hashes


def near(value: int, bits: int, random: Random) -> int:
    """A hash that differs in so many bits."""
    for bit in random.sample(range(64), bits):
        value ^= 1 << bit
    return value


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def found(
    places: list[list[tuple[str, int | None]]], distance: int = 4
) -> tuple[list[Copies], list[dict[str, Any]]]:
    """The copies among places of (bytes, hash); images are called by place and position."""
    with duplicates.opened(distance) as collection:
        everything = []
        for place, images in enumerate(places):
            ids = [f"{place}.{position}" for position in range(len(images))]
            collection.add_images(place, ids, [content for content, _ in images])
            everything += images
        repeated = collection.repeated()
        numbers = [n for n, (_, h) in enumerate(everything) if h is not None and not repeated[n]]
        # Three parts, of which the last two are of no other picture.
        others = Random("parts")
        wholes = [
            [everything[n][1], others.getrandbits(64), others.getrandbits(64)] for n in numbers
        ]
        parts = [np.array([signed(h or 0) for h in each], np.int64) for each in wholes]
        collection.add_hashes(numbers, parts)
        return collection.compare(), collection.copies().read_all().to_pylist()


def test_equal_bytes_are_copies_within_and_between_places() -> None:
    copies, rows = found([[("a", 1), ("a", 1), ("b", None)], [("a", 1), ("c", None), ("b", None)]])
    assert copies == [
        Copies(0, 0, equal=2, alike=2),
        Copies(0, 1, equal=3, alike=3),
        Copies(1, 0, equal=2, alike=2),
    ]
    named = {(row["image_id"], row["other_place"]): row["other_image_id"] for row in rows}
    assert named == {
        ("0.0", 0): "0.1",
        ("0.1", 0): "0.0",
        ("0.0", 1): "1.0",
        ("0.1", 1): "1.0",
        ("0.2", 1): "1.2",
        ("1.0", 0): "0.0",
        ("1.2", 0): "0.2",
    }
    first = rows[0]
    assert (first["equal"], first["alike"], first["distance"]) == (1, 1, 0)


def test_the_nearest_copy_is_named_with_its_distance() -> None:
    random = Random(1)
    whole = random.getrandbits(64)
    places: list[list[tuple[str, int | None]]] = [
        [("a", whole)],
        [
            ("b", near(whole, 4, random)),
            ("c", near(whole, 2, random)),
            ("d", near(whole, 5, random)),
        ],
    ]
    copies, rows = found(places)
    assert Copies(0, 1, equal=0, alike=1) in copies
    assert Copies(1, 0, equal=0, alike=2) in copies
    (row,) = (row for row in rows if row["image_id"] == "0.0")
    assert (row["other_image_id"], row["distance"]) == ("1.1", 2)
    assert (row["equal"], row["alike"]) == (0, 2)


@pytest.mark.parametrize("distance", [0, 1, 4, 7, 12])
def test_no_pair_within_the_distance_is_missed(distance: int) -> None:
    random = Random(distance)
    images: list[tuple[str, int | None]] = []
    for number in range(60):
        whole = random.getrandbits(64)
        images += [(f"{number}", whole), (f"{number} copy", near(whole, number % 16, random))]
    _, rows = found([images], distance)
    pairs = {(row["image_id"], row["other_image_id"]) for row in rows}
    expected = set()
    for number in range(60):
        if number % 16 <= distance:
            one, other = f"0.{2 * number}", f"0.{2 * number + 1}"
            expected |= {(one, other), (other, one)}
    assert pairs == expected


def test_many_pictures_with_one_hash_are_not_as_many_pairs() -> None:
    blank: list[tuple[str, int | None]] = [(f"{n}", 7) for n in range(3_000)]
    copies, rows = found([blank[:2_000], blank[2_000:]])
    assert copies == [
        Copies(0, 0, equal=0, alike=2_000),
        Copies(0, 1, equal=0, alike=2_000),
        Copies(1, 0, equal=0, alike=1_000),
        Copies(1, 1, equal=0, alike=1_000),
    ]
    assert len(rows) == 6_000
    assert all(row["image_id"] != row["other_image_id"] for row in rows)
    assert {row["alike"] for row in rows if row["image_id"] == "0.5"} == {1_999, 1_000}


def test_where_everything_is_alike_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_MAX_LINKS", 100)
    random = Random(2)
    alike: list[tuple[str, int | None]] = [(f"{n}", near(0, 2, random)) for n in range(40)]
    with pytest.raises(DataError, match=r"more than 100 pairs.*smaller --distance"):
        found([alike])


def test_of_any_two_near_hashes_some_mask_sees_no_difference() -> None:
    random = Random(3)
    for distance in (0, 4, 12):
        masks = list(duplicates.masks(distance))
        for _ in range(200):
            one = random.getrandbits(64)
            other = near(one, distance, random)
            assert any(not (one ^ other) & mask for mask in masks)


# Hashes of pictures


def pixels(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def test_a_picture_has_the_hash_of_imagehash_and_those_of_its_parts() -> None:
    import imagehash

    picture = Image.fromarray(pixels(0))
    found = hashes(pixels(0))
    assert found is not None
    assert len(found) == fingerprints.PARTS
    assert int(found[0]) & (1 << 64) - 1 == int(str(imagehash.phash(picture)), 16)
    assert len(set(found.tolist())) > 1


def test_a_picture_without_structure_has_no_hash() -> None:
    flat = np.full((SIDE, SIDE, 3), 128, np.uint8)
    assert hashes(flat) is None
    assert hashes(np.random.default_rng(0).integers(126, 130, flat.shape, dtype=np.uint8)) is None


def test_the_collection_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found([[("a", 1), ("b", 3)]])
    assert not list(tmp_path.iterdir())
