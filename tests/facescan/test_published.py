"""Every paper's file is held to label sets, cards, protocols and datasets that exist."""

from pathlib import Path

import pytest

from facescan import attributes, datasets, models, protocols, published, registry
from facescan.errors import UsageError
from facescan.published import Paper, Row

EACH = pytest.mark.parametrize("name", published.names())
PAPER = "arxiv-2410.24148"

MADE_BY_A_RECIPE = {"fairface-resnet34"}
"""Model folders that users make of published weights; see recipes/convert_fairface.py."""


def rows(paper: Paper) -> list[tuple[str, Row]]:
    return [(name, row) for name, table in paper.tables.items() for row in table.rows]


@EACH
def test_tables_are_of_attributes_views_and_classes_that_exist(name: str) -> None:
    paper = published.load(name)
    for table in paper.tables.values():
        labels = attributes.load(table.attribute).label_set(table.view).labels
        classes = [row.label for row in table.rows if row.label is not None]
        assert not classes or sorted(classes) == sorted(labels)
        assert bool(classes) == (table.summary is not None)


@EACH
def test_test_sets_are_datasets_and_their_classes_are_all_there(name: str) -> None:
    for examined in published.load(name).test_sets.values():
        assert all(datasets.load(edition) for edition in examined.editions)
        for label_set, supports in examined.supports.items():
            (found,) = (
                each
                for attribute in attributes.names()
                for each in attributes.load(attribute).label_sets
                if each.name == label_set
            )
            assert sorted(supports) == sorted(found.labels)


@EACH
def test_models_are_cards_and_protocols_that_exist_or_say_why_they_cannot_be_run(
    name: str,
) -> None:
    paper = published.load(name)
    for asked in paper.models.values():
        assert bool(asked.cards) != bool(asked.not_runnable)
        for card in set(asked.cards) - MADE_BY_A_RECIPE:
            assert models.load(card).name == card
    for table, row in rows(paper):
        if (protocol := paper.protocol(row)) is not None:
            assert paper.tables[table].attribute in protocols.load(protocol).attributes


@EACH
def test_every_figure_has_a_page_and_every_row_a_figure(name: str) -> None:
    paper = published.load(name)
    assert all(table.pages and table.title for table in paper.tables.values())
    assert all(list(row.figures()) for _, row in rows(paper))


def test_the_tables_of_the_paper_are_all_there() -> None:
    tables = published.load(PAPER).tables
    numbered = [*range(8, 14), *range(15, 19)]
    assert list(tables)[: len(numbered)] == [f"table{number:02d}" for number in numbered]
    assert [len(tables[f"table{n:02d}"].rows) for n in numbered] == [6, 6, 6, 9, 9, 13, 8, 7, 2, 5]
    assert {f"utkface-{name}" for name in ("race", "gender", "age")} <= set(tables)
    assert sum(len(list(row.figures())) for _, row in rows(published.load(PAPER))) == 241


def test_a_wording_that_is_not_printed_is_none_and_not_the_models_own() -> None:
    paper = published.load(PAPER)
    assert paper.protocol(paper.tables["table08"].row("GPT-4o")) == "paper-gpt"
    assert paper.protocol(paper.tables["table10"].row("GPT-4o")) is None


def test_rounding_follows_the_digits_that_are_printed() -> None:
    paper = published.load(PAPER)
    emotion, age = paper.tables["table13"], paper.tables["table12"]
    for row, ends in (
        (emotion.row("POSTER++"), (0.63765, 0.63775)),
        (emotion.row("GPT-4o-mini"), (0.4645, 0.4655)),
        (age.row("FaceScanPaliGemma"), (0.795, 0.805)),
    ):
        assert row.accuracy is not None
        assert published.rounding(row.accuracy) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("- {model: GPT-4o, accuracy: 76.4}", "- {model: GPT-5, accuracy: 1}"), "model 'GPT-5'"),
        (("test_set: utkface", "test_set: wiki"), "unknown test set 'wiki'"),
        (("summary: table13", "summary: table99"), "unknown table 'table99'"),
        (("accuracy: 76.4", "acuracy: 76.4"), "Extra inputs are not permitted"),
        (("accuracy: 76.4", "accuracy: 176.4"), "less than or equal to 100"),
        (("over: PaliGemma pre-trained", "over: PaliGemma"), "a claim about 'PaliGemma'"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], message: str
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    text = registry.path(published.PACKAGE, PAPER).read_text()
    assert change[0] in text
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "mine.yaml").write_text(text.replace(*change))
    registry.include(tmp_path)
    with pytest.raises(UsageError, match=r"mine\.yaml: not a paper's figures") as refused:
        published.load("mine")
    assert message in str(refused.value)
