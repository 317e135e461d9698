"""The drawn faces: always the same, uniformly labelled, and found by a face detector."""

import hashlib
from collections import Counter
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from cv2.data import haarcascades
from PIL import Image

from facescan import attributes
from facescan.datasets import Source, SourceRow, sample


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Any, sample.Truth]]:
    return [sample.draw(0, index) for index in range(500)]


@pytest.fixture(scope="module")
def found(drawn: list[tuple[Any, sample.Truth]]) -> list[list[tuple[int, ...]]]:
    """Boxes (x, y, width, height) of the faces that OpenCV finds in each picture."""
    cascade = cv2.CascadeClassifier(haarcascades + "haarcascade_frontalface_alt2.xml")
    grey = [cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) for pixels, _ in drawn]
    return [[tuple(map(int, box)) for box in cascade.detectMultiScale(g, 1.1, 3)] for g in grey]


def _number(attribute: str, label: str) -> int:
    labels = attributes.load(attribute).label_set(sample.LABEL_SETS[attribute]).labels
    return labels.index(label)


def test_a_picture_is_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for index in range(20):
        digest.update(sample.draw(3, index)[0].tobytes())
    assert digest.hexdigest() == "759b26bd6cfb88f7683031376438683ef052ebfb678d89896dc88a4f7c4511e3"


def test_a_picture_does_not_depend_on_how_many_are_asked_for() -> None:
    many = list(sample.faces(1, 0, 8))
    assert list(sample.faces(1, 0, 3)) == many[:3]
    assert list(sample.faces(1, 5, 3)) == many[5:]
    assert [face.image_id for face in many[:2]] == ["sample-1-0000000", "sample-1-0000001"]


def test_seeds_and_indices_give_different_pictures() -> None:
    files = [face.data for seed in (0, 1, 2**40) for face in sample.faces(seed, 0, 20)]
    assert len(set(files)) == len(files)


def test_a_file_is_a_jpeg_of_the_pixels() -> None:
    pixels, _ = sample.draw(0, 0)
    image = Image.open(BytesIO(sample.encode(pixels)))
    assert (image.format, image.size, image.mode) == ("JPEG", (sample.SIDE, sample.SIDE), "RGB")
    assert np.abs(np.array(image).astype(int) - pixels).mean() < 5


def test_another_side_is_the_same_picture_at_another_size() -> None:
    small, _ = sample.draw(0, 4, side=112)
    large, truth = sample.draw(0, 4, side=224)
    assert truth.labels == sample.draw(0, 4, side=112)[1].labels
    shrunk = cv2.resize(large, (112, 112), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - small).mean() < 8


@pytest.mark.parametrize("attribute", sample.LABEL_SETS)
def test_every_label_is_drawn_about_equally_often(
    drawn: list[tuple[Any, sample.Truth]], attribute: str
) -> None:
    labels = attributes.load(attribute).label_set(sample.LABEL_SETS[attribute]).labels
    counts = Counter(truth.labels[attribute] for _, truth in drawn)
    assert set(counts) == set(labels)
    expected = len(drawn) / len(labels)
    assert all(0.6 * expected < count < 1.4 * expected for count in counts.values())


def test_labels_are_independent_of_each_other_and_of_the_skin(
    drawn: list[tuple[Any, sample.Truth]],
) -> None:
    codes = []
    for pixels, truth in drawn:
        left, top, right, bottom = truth.box
        # Beside the nose: skin in every figure.
        x, y = round(0.4 * left + 0.6 * right), round(0.33 * top + 0.67 * bottom)
        skin = float(pixels[y - 2 : y + 3, x - 2 : x + 3].mean())
        codes.append([*(_number(name, label) for name, label in truth.labels.items()), skin])
    correlations = np.corrcoef(np.array(codes).T) - np.eye(5)
    assert np.abs(correlations).max() < 0.2


def test_years_lie_in_the_age_label(drawn: list[tuple[Any, sample.Truth]]) -> None:
    age = attributes.load("age").label_set("age-9")
    for _, truth in drawn:
        assert age.covering(truth.years, truth.years) == truth.labels["age"]


def test_a_detector_finds_exactly_one_face(found: list[list[tuple[int, ...]]]) -> None:
    assert sum(len(boxes) == 1 for boxes in found) >= 0.99 * len(found)


def test_a_detectors_crop_with_a_margin_keeps_every_code(
    drawn: list[tuple[Any, sample.Truth]], found: list[list[tuple[int, ...]]]
) -> None:
    for (_, truth), boxes in zip(drawn, found, strict=True):
        if len(boxes) != 1:
            continue
        x, y, side, _ = boxes[0]
        margin = 0.3 * side
        left, top, right, bottom = truth.box
        # The head's box holds the codes with a twentieth of its side to spare.
        spare = 0.05 * (right - left)
        assert x - margin <= left + spare
        assert right - spare <= x + side + margin
        assert bottom - spare <= y + side + margin
        # The cap may lose its top, but not its lower half with the band.
        assert y - margin <= top + 0.12 * (bottom - top)


def test_the_dataset_gives_what_was_asked_for() -> None:
    rows = list(sample.DATASET.rows(Source(None, None, sample.Options(size=4, seed=9))))
    for row, face in zip(rows, sample.faces(9, 0, 4), strict=True):
        assert isinstance(row, SourceRow)
        assert (row.image_id, row.image, row.labels) == (
            face.image_id,
            face.data,
            face.truth.labels,
        )
        assert row.values == {"years": face.truth.years}
