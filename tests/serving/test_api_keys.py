"""Keys come from a file or the environment, and nothing ever shows one."""

from pathlib import Path

import pytest

from facescan.errors import UsageError
from serving import api_keys
from serving.api_keys import FILE, KEYS

GOOD = "0123456789abcdef-1"


def test_keys_are_read_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{GOOD}\n\n{GOOD}2\n")
    for keys in (api_keys.read({KEYS: f"{GOOD}, {GOOD}2"}), api_keys.read({FILE: str(file)})):
        assert keys
        assert keys.accept(GOOD)
        assert keys.accept(f"{GOOD}2")
        assert not keys.accept(GOOD[:-1])
        assert not keys.accept("")
        assert GOOD not in repr(vars(keys))


def test_no_keys_are_none() -> None:
    assert not api_keys.read({})
    assert not api_keys.read({}).accept("")


@pytest.mark.parametrize("content", ["", "# nothing\n", "tooshort\n", f"{GOOD}é\n"])
def test_a_file_without_a_usable_key_is_refused_and_not_shown(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UsageError) as refused:
        api_keys.read({FILE: str(file)})
    assert content.strip() == "" or content.strip() not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        api_keys.read({FILE: str(tmp_path / "nowhere")})
