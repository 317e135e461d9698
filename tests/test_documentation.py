"""The commands in the README and in docs/ are run, not imagined; links lead somewhere."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import cli
from tests.conftest import jpeg
from tests.provider.running import Provider, provider_server

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a test machine has not: weights behind a licence, a cluster's shared disk, big samples.
STAND_INS = {
    "paligemma-3b-mix-224": "fake",
    "--size 1000": "--size 20",
    "--limit 600": "--limit 20",
    "--rpm 500": "--rpm 5000",
}
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\.\.\.|[\[|]")


def commands(page: Path) -> list[str]:
    """The `facescan` lines of a page's code blocks, without those that are patterns."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("facescan ") and not PLACEHOLDER.search(line)]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """Stands in for OpenAI."""
    with provider_server() as running:
        yield running


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: p.name)
def test_the_commands_of_a_page_work_in_their_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("serving.batches.pause", lambda seconds: None)
    stand_ins = STAND_INS | {
        "--model gpt-4o": f"--model gpt-4o --model-base-url {provider.base_url}"
    }
    for command in commands(page):
        for original, stand_in in stand_ins.items():
            command = command.replace(original, stand_in)
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, command


def test_the_readme_has_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
