"""facescan report RUN on real runs: scored, reported, opened in a browser."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser
from rich.console import Console

from facescan.errors import DataError, UsageError
from jobs.compare import compare_runs
from jobs.config import resolve
from jobs.report import report
from jobs.run import run
from jobs.score import score
from tests import browser as browsers
from tests.facescan.report.test_page import FIGURES, OPEN_ALL, WIDTHS, is_shown_as, looked_up


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def answered(output_dir: Path, **flags: Any) -> Path:
    settings = {
        "dataset": "sample",
        "limit": 80,
        "model": ["fake"],
        "attributes": ["race", "gender", "age"],
        "output_dir": output_dir,
    }
    folder = run(resolve(settings | flags, None), quiet())
    score(folder.root.location, quiet())
    return Path(folder.root.location)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.running() as running:
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A scored run; tests do not change it."""
    del local_ray
    return answered(tmp_path_factory.mktemp("runs") / "first")


def metrics(folder: Path) -> Any:
    return json.loads((folder / "scores" / "metrics.json").read_text())


@pytest.mark.slow
def test_a_run_is_reported_as_it_was_scored(made: Path, tmp_path: Path, browser: Browser) -> None:
    target = report([str(made)], str(tmp_path / "report"), quiet())
    assert target.names() == ["index.html", "report.md"]
    page = tmp_path / "report" / "index.html"
    assert page.stat().st_size <= 3_000_000
    content = metrics(made)
    with browsers.opened(browser, page.as_uri(), width=390) as watched:
        watched.page.evaluate(OPEN_ALL)
        figures = watched.page.evaluate(FIGURES)
        needed, window = watched.page.evaluate(WIDTHS)
        assert watched.page.pdf().startswith(b"%PDF")
        assert watched.asked == [page.as_uri()]
        assert watched.said == []
        groupings = sum(len(each["groups"]) for each in content["scores"])
        assert groupings > 0
        assert watched.page.locator("#groups table[id^=table-groups]").count() > 0
        assert watched.page.locator("table.heat").count() == len(content["scores"])
    assert needed <= window == 390
    assert not [(at, s) for at, s in figures if not is_shown_as(looked_up(at, [content]), s)]
    shown = {at for at, _ in figures}
    for number in range(len(content["scores"])):
        assert f"0:/scores/{number}/accuracy/value" in shown


@pytest.mark.slow
def test_a_report_names_what_was_asked_and_no_place_of_this_machine(
    made: Path, tmp_path: Path
) -> None:
    report([str(made)], str(tmp_path), quiet())
    page = (tmp_path / "index.html").read_text()
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["combinations"][0]["prompt"].splitlines()[0] in page
    assert manifest["dataset"]["digest"] in page
    for name in ("index.html", "report.md"):
        assert str(made.parent) not in (tmp_path / name).read_text()
        assert "not facts about people" in (tmp_path / name).read_text()


@pytest.mark.slow
def test_markdown_has_the_figures_of_the_scores(made: Path, tmp_path: Path) -> None:
    report([str(made)], str(tmp_path), quiet())
    text = (tmp_path / "report.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for table in tables:
        widths = {line.replace(r"\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1
    for entry in metrics(made)["scores"]:
        value = entry["accuracy"]
        shown = (
            "{:.1f} [{:.1f}\N{EN DASH}{:.1f}]".format(
                *(100 * value[key] for key in ("value", "ci_low", "ci_high"))
            )
            .replace("[", r"\[")
            .replace("]", r"\]")
        )
        assert shown in text


@pytest.mark.slow
def test_the_same_run_gives_the_same_report_beside_its_scores(made: Path) -> None:
    report([str(made)], None, quiet())
    before = (made / "report" / "index.html").read_bytes()
    console = quiet()
    report([str(made)], None, console)
    assert (made / "report" / "index.html").read_bytes() == before
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue().split()
    assert said == [f"{made}/report/index.html", f"{made}/report/report.md"]
    assert b"<img" not in before


@pytest.mark.slow
def test_several_runs_stand_side_by_side_and_are_compared(
    made: Path, tmp_path: Path, browser: Browser
) -> None:
    other = answered(tmp_path / "second", limit=60, protocol="neutral-choice")
    runs = [str(made), str(other)]
    report(runs, str(tmp_path / "report"), quiet())
    page = tmp_path / "report" / "index.html"
    assert "were not compared with each other" in page.read_text()
    compare_runs(runs, quiet())
    report(runs, str(tmp_path / "report"), quiet())
    compared = json.loads((made / "scores" / "comparison.json").read_text())
    contents = {"0": metrics(made), "1": metrics(other), "comparison.json": compared}
    with browsers.opened(browser, page.as_uri()) as watched:
        figures = watched.page.evaluate(FIGURES)
        rows = watched.page.locator("#comparison tbody tr").count()
        names = watched.page.locator("#summary-sample-all-race tbody th").all_inner_texts()
    assert rows == len(compared["comparisons"])
    assert len(set(names)) == len(names)
    for at, text in figures:
        run_name, pointer = at.split(":", 1)
        assert is_shown_as(looked_up(f"0:{pointer}", [contents[run_name]]), text), at


@pytest.mark.slow
def test_pictures_are_shown_only_if_asked_for_and_nothing_else_of_their_files(
    tmp_path: Path, local_ray: None, browser: Browser
) -> None:
    del local_ray
    folder = answered(tmp_path / "run", attributes=["race"])
    console = quiet()
    report([str(folder)], None, console, with_images=True)
    page = folder / "report" / "index.html"
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    assert 0 < len(sources) <= 600
    for source in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source)))
        assert max(picture.size) <= 96
        assert not picture.getexif()
    assert isinstance(console.file, io.StringIO)
    assert f"{len(sources)} pictures of faces are in the page" in console.file.getvalue()
    with browsers.opened(browser, page.as_uri()) as watched:
        watched.page.evaluate(OPEN_ALL)
        watched.page.locator(".gallery img").last.scroll_into_view_if_needed()
        shown = watched.page.evaluate(
            "Promise.all([...document.images].map(each => each.decode().then(() => true)))"
        )
        assert len(shown) == len(sources)
        assert [url for url in watched.asked if not url.startswith("data:")] == [page.as_uri()]
        assert watched.said == []
    (entry,) = [e for e in metrics(folder)["scores"] if e["view"] == "race-7"]
    counts = entry["confusion"]["counts"]
    for target, label, some, of in re.findall(
        r">\s*([\w ]+) answered ([\w ]+): (\d+) of\s+<span[^>]*>(\d+)<", page.read_text()
    ):
        row = entry["confusion"]["targets"].index(target)
        column = entry["confusion"]["columns"].index(f"label:{label}")
        assert counts[row][column] == int(of) >= int(some)


def test_a_run_without_scores_is_told_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no scores to report; `facescan score .*` makes them"):
        report([str(tmp_path)], None, quiet())
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": 1, "scores": []}', r"metrics.json: version 1, expected 3; `facescan score`"),
        ("{", r"metrics.json: damaged"),
        ('{"version": 3, "note": "", "scores": [{}]}', r"damaged: scores.0.model"),
    ],
)
def test_scores_that_cannot_be_read_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=message):
        report([str(tmp_path)], None, quiet())


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="given twice"):
        report([str(tmp_path), f"{tmp_path}/"], None, quiet())
    with pytest.raises(UsageError, match="not a run folder"):
        report([str(tmp_path / "nowhere")], None, quiet())
