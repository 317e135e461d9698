"""Errors keep their message and their fields between processes."""

import pickle

import pytest

from facescan.errors import BadImage, DataError, EngineError, FacescanError, UnknownNameError


@pytest.mark.parametrize(
    "error",
    [
        UnknownNameError("model", "faek", ["fake", "other"]),
        BadImage("truncated", "ends early"),
        EngineError("gone"),
        DataError("a.csv line 3: no"),
    ],
)
def test_an_error_survives_pickling(error: FacescanError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made on the line itself
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_an_unknown_name_comes_with_the_known_ones_and_the_nearest() -> None:
    message = str(UnknownNameError("model", "faek", ["other", "fake"]))
    assert message == "unknown model 'faek'; known: fake, other. Did you mean 'fake'?"
