"""The page in a real browser: what it says, how it looks at any width, and what it asks for."""

import json
import re
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from facescan import published
from facescan.report.page import Report
from facescan.report.publications import Publication
from facescan.score.consistency import Check
from facescan.score.published import beside
from tests import browser as browsers
from tests.facescan.report import documents

OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"
FIGURES = """[...document.querySelectorAll('[data-at]')].map(
    each => [each.dataset.at, each.textContent.trim()])"""
WIDTHS = "[document.documentElement.scrollWidth, window.innerWidth]"

# Text and what is behind it: the nearest ancestor with a colour. Strips and tiles too small for
# their text hide it.
CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !parent.checkVisibility()) continue;
    const inSvg = parent.closest('svg');
    const ink = getComputedStyle(parent)[inSvg ? 'fill' : 'color'];
    let behind = parent;
    while (behind && (channels(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
      behind = behind.parentElement;
    const paper = getComputedStyle(behind ?? document.body).backgroundColor;
    const both = [ink, paper].map(colour => luminance(channels(colour)));
    const [light, dark] = both.sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    found[`${ink} on ${paper}`] = ratio;
  }
  return found;
}"""

Write = Callable[..., str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.running() as running:
        yield running


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the page of some runs and returns its URL."""

    def page(*contents: bytes, **prompts: str) -> str:
        runs = [
            documents.run(content, f"run-{number}", **prompts)
            for number, content in enumerate(contents)
        ]
        path = tmp_path / "index.html"
        path.write_text(Report(runs).html())
        return path.as_uri()

    return page


def looked_up(at: str, contents: list[Any]) -> Any:
    run, pointer = at.split(":", 1)
    keys = [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]
    return reduce(
        lambda value, key: value[int(key)] if isinstance(value, list) else value[key],
        keys,
        contents[int(run)],
    )


def is_shown_as(value: float | None, text: str) -> bool:
    """Whether the text can be the value, as a number, in percent or in points."""
    if value is None:
        return text == "\N{EN DASH}"
    if text == "< 0.001":
        return 0 <= value < 0.001
    number = float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))
    digits = len(text.partition(".")[2])
    half = 0.5 * 10.0**-digits + 1e-9
    return abs(number - value) <= half or (digits == 1 and abs(number - 100 * value) <= half)


def test_every_figure_is_the_one_in_metrics_json(browser: Browser, write: Write) -> None:
    content = documents.rich()
    with browsers.opened(browser, write(content, content)) as watched:
        figures = watched.page.evaluate(FIGURES)
    contents = [json.loads(content)] * 2
    wrong = [(at, text) for at, text in figures if not is_shown_as(looked_up(at, contents), text)]
    assert not wrong
    assert len({at for at, _ in figures}) > 3000


def test_every_figure_that_has_an_interval_shows_it(browser: Browser, write: Write) -> None:
    content = documents.rich()
    with browsers.opened(browser, write(content)) as watched:
        shown = {at for at, _ in watched.page.evaluate(FIGURES)}
    for number, score in enumerate(json.loads(content)["scores"]):
        place = f"0:/scores/{number}"
        for key in ("accuracy", "accuracy_answered", "balanced_accuracy", "macro_f1"):
            assert {f"{place}/{key}/{part}" for part in score[key]} <= shown
        assert {f"{place}/n", f"{place}/n_answered"} <= shown
        for row, counts in enumerate(score["confusion"]["counts"]):
            assert all(
                not count or f"{place}/confusion/counts/{row}/{column}" in shown
                for column, count in enumerate(counts)
            )


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser: Browser, write: Write) -> None:
    url = write(documents.rich())
    with browsers.opened(browser, url) as watched:
        watched.page.evaluate(OPEN_ALL)
        watched.page.wait_for_load_state("networkidle")
        assert watched.asked == [url]
        assert watched.said == []


def test_every_part_is_there(browser: Browser, write: Write) -> None:
    content = documents.rich()
    scores = json.loads(content)["scores"]
    with browsers.opened(browser, write(content)) as watched:
        page = watched.page
        titles = page.locator("h2").all_inner_texts()
        assert titles == [
            *("Summary", "Outcomes", "Answers against targets", "Groups", "Calibration"),
            *("Models compared", "Published and measured", "Groups in detail"),
            *("How it was made", "Limits", "Responsible use"),
        ]
        assert page.locator("table.heat").count() == len(scores)
        groupings = [grouping for score in scores for grouping in score["groups"]]
        several = [grouping for grouping in groupings if len(grouping["by"]) > 1]
        assert page.locator(".treemap").count() == len(several)
        tiles = sum(1 for grouping in several for cell in grouping["cells"] if cell["n"])
        assert page.locator(".tile").count() == tiles
        assert page.locator("svg.plot").count() == sum(bool(s["calibration"]) for s in scores)
        rows = page.locator("#summary tbody tr")
        assert rows.count() == len(scores)
        assert page.locator("#summary tbody .dot").count() == len(scores)
        bars = page.locator("#outcomes tbody tr")
        assert all(bar.locator("rect.right").count() == 1 for bar in bars.all())
        assert page.locator("#comparison .reference").count() == 3


def test_bars_are_as_long_as_their_counts(browser: Browser, write: Write) -> None:
    score = documents.score("gender", "one")
    with browsers.opened(browser, write(documents.content([score]))) as watched:
        strip = watched.page.locator("#outcomes .strip").first
        whole = strip.bounding_box()
        right = strip.locator("rect.right").bounding_box()
        assert whole is not None
        assert right is not None
        assert right["width"] / whole["width"] == pytest.approx(
            score["n_correct"] / score["n"], abs=0.005
        )


def test_tiles_are_as_large_as_their_groups(browser: Browser, write: Write) -> None:
    score = documents.score("race", "one", groups=[("race", "gender")])
    with browsers.opened(browser, write(documents.content([score]))) as watched:
        whole = watched.page.locator(".treemap").bounding_box()
        assert whole is not None
        cells = {c["group"][0] + c["group"][1]: c["n"] for c in score["groups"][0]["cells"]}
        total = sum(cells.values())
        for tile in watched.page.locator(".tile").all():
            group = "".join(tile.locator(".group").all_text_contents())
            box = tile.bounding_box()
            assert box is not None
            area = box["width"] * box["height"] / (whole["width"] * whole["height"])
            assert area == pytest.approx(cells[group] / total, abs=0.003)


@pytest.mark.parametrize(("p", "found"), [(0.0004, True), (0.06, False)])
def test_no_group_stands_out_unless_the_groups_differ_at_all(
    browser: Browser, write: Write, p: float, found: bool
) -> None:
    score = documents.score("race", "one", groups=[("race",), ("race", "gender")])
    for grouping in score["groups"]:
        grouping["equal_rate"]["p_holm"] = p
        cell = grouping["cells"][5]["simultaneous"]
        assert cell["ci_high"] < grouping["pooled"]["value"]
    with browsers.opened(browser, write(documents.content([score]))) as watched:
        groups = watched.page.locator("#groups")
        assert (groups.locator(".apart").count() > 0) == found
        assert (groups.locator(".tile.stands-out").count() > 0) == found


def test_a_difference_is_marked_by_its_adjusted_p(browser: Browser, write: Write) -> None:
    some = documents.comparison("one", "two", "race", 0.08)
    sure = documents.comparison("one", "three", "race", 0.09)
    sure["mcnemar"]["p_holm"] = 0.05
    with browsers.opened(browser, write(documents.content([], [some, sure]))) as watched:
        rows = watched.page.locator("#comparison tbody tr")
        assert [row.locator("path.apart").count() for row in rows.all()] == [0, 1]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, write: Write, width: int) -> None:
    with browsers.opened(browser, write(documents.rich()), width=width) as watched:
        for script in ("0", OPEN_ALL):
            watched.page.evaluate(script)
            needed, window = watched.page.evaluate(WIDTHS)
            assert needed <= window == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_what_is_behind_it(browser: Browser, write: Write, scheme: Any) -> None:
    url = write(documents.rich(), fake="a hypothetical, fictional scenario")
    with browsers.opened(browser, url, scheme=scheme) as watched:
        watched.page.evaluate(OPEN_ALL)
        found = watched.page.evaluate(CONTRASTS)
    assert len(found) > 15
    assert {pair: ratio for pair, ratio in found.items() if ratio < 4.5} == {}


def test_it_is_in_order_for_those_who_hear_it(browser: Browser, write: Write) -> None:
    with browsers.opened(browser, write(documents.rich())) as watched:
        page = watched.page
        assert page.locator("html").get_attribute("lang") == "en"
        levels = [
            int(tag[1])
            for tag in page.evaluate(
                "[...document.querySelectorAll('h1,h2,h3,h4')].map(each => each.tagName)"
            )
        ]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.locator("table:not(:has(caption))").count() == 0
        assert page.locator("th:not([scope])").count() == 0
        assert page.locator("svg:not([role=img], [aria-hidden], svg svg)").count() == 0
        assert page.locator("[role=img]:not([aria-label])").count() == 0
        assert page.locator(".box:not([tabindex='0'])").count() == 0
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
        assert len(ids) == len(set(ids))
        targets = page.evaluate(
            "[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))"
        )
        assert len(targets) == 11
        assert all(targets)


def test_details_open_by_keyboard(browser: Browser, write: Write) -> None:
    with browsers.opened(browser, write(documents.rich())) as watched:
        details = watched.page.locator("details").first
        assert not details.locator("table").is_visible()
        details.locator("summary").focus()
        watched.page.keyboard.press("Enter")
        assert details.locator("table").is_visible()


@pytest.mark.slow
def test_it_prints_light_on_a4_with_everything_that_is_folded(
    browser: Browser, write: Write
) -> None:
    # A4 without its margins is 720 pixels wide.
    url = write(documents.rich())
    with browsers.opened(browser, url, width=720, scheme="dark") as watched:
        printed = watched.page.pdf(format="A4")
        assert printed.startswith(b"%PDF")
        assert printed.count(b"/Type /Page\n") > 10
        watched.page.emulate_media(media="print")
        box = watched.page.locator("details table").first.bounding_box()
        assert box is not None
        assert box["height"] > 50
        needed, window = watched.page.evaluate(WIDTHS)
        assert needed <= window == 720
        paper = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"


def test_a_wording_that_avoids_refusals_is_marked_wherever_its_figures_stand(
    browser: Browser, write: Write
) -> None:
    prompt = "Generate a hypothetical classification assuming a fictional scenario."
    with browsers.opened(browser, write(documents.rich(), fake=prompt)) as watched:
        page = watched.page
        for section in ("summary", "outcomes", "confusion", "groups"):
            found = page.locator(f"#{section}")
            assert "avoids refusals" in found.inner_text()
            names = [
                *found.locator("tbody th").all_inner_texts(),
                *found.locator("h4").all_inner_texts(),
            ]
            fakes = [name for name in names if name.startswith("fake") or ": fake" in name]
            assert fakes
            assert all("†" in name for name in fakes)
            assert not [name for name in names if "tiny" in name and "†" in name]
        assert prompt in page.locator("blockquote").all_text_contents()


def test_what_others_wrote_is_text(browser: Browser, write: Write) -> None:
    name = "<script>document.title='x'</script><img src=x onerror=alert(1)>"
    content = documents.content([documents.score("gender", name, groups=[("gender",)])])
    with browsers.opened(browser, write(content)) as watched:
        assert watched.page.title() == "facescan: run-0"
        assert watched.page.locator("script, main img").count() == 0
        assert name in watched.page.locator("#summary tbody th").first.inner_text()
        assert len(watched.asked) == 1


def test_a_page_of_many_scores_stays_below_three_megabytes() -> None:
    scores = [
        documents.score("race", f"model-{number}", groups=[("race", "age"), ("age", "gender")])
        for number in range(40)
    ]
    page = Report([documents.run(documents.content(scores))]).html()
    assert 2_000_000 < len(page.encode()) <= 3_000_000
    assert page.count("Left out, so that the page stays") > 1
    assert all(f">model-{number}" in page for number in range(40))


def test_what_is_found_of_groups_comes_before_their_details() -> None:
    scores = [
        documents.score(attribute, f"model-{number}", groups=[("gender",), ("race", "gender")])
        for attribute in documents.LABELS
        for number in range(14)
    ]
    page = Report([documents.run(documents.content(scores))]).html()
    found, detailed = page.partition('id="groups-in-detail"')[::2]
    assert len(page.encode()) <= 3_000_000
    assert "Left out, so that the page stays" not in found
    assert "Left out, so that the page stays" in detailed
    assert 0 < detailed.count('id="table-further-') < 14 * 3 * 2


def test_of_groups_that_are_the_classes_there_are_no_details() -> None:
    score = documents.score("race", "one", groups=[("race",), ("gender",)])
    for cell, own in zip(score["groups"][0]["cells"], documents.RACES, strict=True):
        for each in cell["classes"]:
            if each["label"] != own:
                each["support"] = 0
    page = Report([documents.run(documents.content([score]))]).html()
    assert "table-groups-0-0-0" in page
    assert "table-further-0-0-0" not in page
    assert "table-further-0-0-1" in page


def test_a_recall_of_few_rows_is_not_shown() -> None:
    score = documents.score("gender", "one", groups=[("race",)])
    cells = [cell for cell in score["groups"][0]["cells"] if not cell["suppressed"]]
    for cell, support in zip(cells, (19, 20), strict=False):
        cell["classes"][0] |= {"support": support, "recall": documents.around(0.123, 0.1)}
    page = Report([documents.run(documents.content([score]))]).html()
    recalls = page.partition("table-recalls-0-0-0")[2].partition("</table>")[0]
    assert recalls.count("12.3") == 1


def test_groups_show_what_failed_in_the_run() -> None:
    score = documents.score("gender", "one", groups=[("race",)])
    assert "failed in the run" not in table_of_groups(score)
    score["groups"][0]["cells"][0]["n_run_failures"] = 4321
    assert "failed in the run" in table_of_groups(score)
    assert "4,321" in table_of_groups(score)


def table_of_groups(score: documents.Json) -> str:
    page = Report([documents.run(documents.content([score]))]).html()
    return page.partition('<table id="table-groups-0-0-0"')[2].partition("</table>")[0]


def test_a_detail_too_large_for_the_page_leaves_room_for_those_after_it() -> None:
    large = documents.score("race", "large", groups=[("race", "age")])
    (grouping,) = large["groups"]
    grouping["remarks"] = ["a remark of this length " * 200_000]
    scores = [large, documents.score("race", "small", groups=[("race", "age")])]
    page = Report([documents.run(documents.content(scores))]).html()
    assert page.count("Left out, so that the page stays") == 1
    assert 'id="groups-0-0-0"' in page
    assert "table-groups-0-0-0" not in page
    assert "table-groups-0-1-0" in page


def test_a_page_of_many_comparisons_stays_below_three_megabytes() -> None:
    compared = [
        documents.comparison(f"model-{a}", f"model-{b}", attribute, 0.01)
        for attribute in documents.LABELS
        for a in range(45)
        for b in range(a)
    ]
    page = Report([documents.run(documents.content([], compared))]).html()
    assert 1_000_000 < len(page.encode()) <= 3_000_000
    assert page.count("Left out, so that the page stays") in (1, 2)
    assert all(f">{name.capitalize()}: sample/test</h3>" in page for name in documents.LABELS)


def test_markdown_keeps_the_spaces_around_figures() -> None:
    compared = documents.comparison("one", "two", "race", 0.08)
    score = documents.score("race", "one") | {"n_run_failures": 12, "accuracy_worst": 0.7}
    score |= {"complete": False, "accuracy_best": 0.8}
    text = Report([documents.run(documents.content([score], [compared]))]).markdown()
    assert (
        "race-7: 12 more rows failed in the run, which says nothing of the model; with them "
        "accuracy is between 70.0 and 80.0 %."
    ) in text
    assert r"| +8.0 \[+6.2 to +9.8\] |" in text


def test_the_bounds_of_a_gap_stand_beside_the_gap_as_seen() -> None:
    score = documents.score("race", "one", groups=[("gender",)])
    (grouping,) = score["groups"]
    spread = {"value": 0.087, "corrected": 0.031, "ci_low": 0.052, "ci_high": 0.124}
    grouping["largest_gap"] = spread
    grouping["ratio"] = {"value": 0.9, "corrected": 1.02, "ci_low": 0.85, "ci_high": 0.95}
    text = Report([documents.run(documents.content([score]))]).markdown()
    assert r"| largest gap, points | +8.7 \[+5.2 to +12.4\] |" in text
    assert "| largest gap, points, less what chance adds | +3.1 |" in text
    assert "| lowest rate ÷ highest | 0.90 \\[0.85\N{EN DASH}0.95\\] |" in text
    assert "| lowest rate ÷ highest, less what chance adds | 1.02 |" in text
    (overview,) = re.findall(r"^\| one \S+ by gender.*$", text.replace(",", ""), re.MULTILINE)
    assert "| +3.1 |" in overview


@pytest.mark.parametrize("by", [("gender",), ("gender", "race")])
@pytest.mark.parametrize("given_up", [True, False])
def test_groups_that_were_not_compared_are_not_called_alike(
    by: tuple[str, ...], given_up: bool
) -> None:
    score = documents.score("race", "one", groups=[by])
    (grouping,) = score["groups"]
    nothing = dict.fromkeys(("value", "ci_low", "ci_high"))
    untested = dict.fromkeys(("equal_rate", "largest_gap", "ratio", "worst"))
    grouping |= {**untested, "pooled": nothing, "outcome_tests": {}, "findings": []}
    remark = "Nothing is compared, for a reason."
    grouping |= {"remarks": [remark], "cells": [] if given_up else grouping["cells"]}
    report = Report([documents.run(documents.content([score]))])
    for text in (report.html(), report.markdown()):
        assert "Not compared." in text
        assert remark in text
        assert "beyond chance." not in text.partition("Not compared.")[2].partition(remark)[0]
        assert "No difference between these groups" not in text
        assert "no finding" not in text
    assert ("race-7: not compared" in report.html()) == (len(by) == 1)
    assert ('class="treemap"' in report.html()) == (len(by) > 1 and not given_up)


def test_a_document_with_nothing_in_it_says_so(browser: Browser, write: Write) -> None:
    with browsers.opened(browser, write(documents.content([]))) as watched:
        assert watched.page.locator("h2").count() == 11
        assert "hold no groups" in watched.page.locator("#groups").inner_text()
        assert watched.said == []


def test_published_figures_stand_beside_measured_ones(browser: Browser, tmp_path: Path) -> None:
    scores = [
        documents.score("gender", model, dataset="fairface.125", split="val")
        for model in ("clip-vit-base-patch32", "mine")
    ]
    content = documents.content(scores)
    paper = published.load("arxiv-2410.24148")
    figures = beside(paper, [json.loads(content)])
    assert figures
    contradiction = Check("table11", False, "Two figures of it cannot both be true.")
    report = Report(
        [documents.run(content)],
        published=[
            Publication(tuple(figures), (contradiction,), frozenset({("GPT-4o", "gender")}))
        ],
    )
    (tmp_path / "index.html").write_text(report.html())
    with browsers.opened(browser, (tmp_path / "index.html").as_uri()) as watched:
        section = watched.page.locator("#published")
        rows = section.locator("tbody tr")
        assert rows.count() == len(figures)
        assert rows.locator(".hollow").count() == len(figures)
        measured = [each for each in figures if each.measured is not None]
        assert 0 < len(measured) < len(figures)
        assert rows.locator(".dot").count() == len(measured)
        assert rows.filter(has_text="published only").count() == len(figures) - len(measured)
        assert contradiction.says in section.inner_text()
        names = section.locator("tbody th").all_inner_texts()
        assert {"†" in name for name in names if name.startswith("GPT-4o ")} == {True}
        assert sum("†" in name for name in names) < len(names)
        assert "avoids refusals" in section.inner_text()
        shown = dict(watched.page.evaluate(FIGURES))
    for each in measured:
        found = each.measured
        assert found is not None
        if found.place:
            at = f"0:/scores/{found.score}{found.place}/value"
            assert is_shown_as(looked_up(at, [json.loads(content)]), shown[at])
