"""The text of an inspection: aligned, at most 100 columns, nothing of users' data that steers a terminal."""

from __future__ import annotations

import pytest

from data.inspection.options import InspectionOptions
from data.inspection.prepared import inspect_prepared
from data.inspection.tables import Column, Section, figure, share, size
from data.inspection.text import MOST_ROWS, WIDTH, table, text, width
from tests.data.inspection.conftest import Toy


@pytest.fixture(scope="module")
def shown(toy: Toy) -> str:
    return text(inspect_prepared(toy.path, InspectionOptions(max_length=7)))


def block(shown: str, title: str) -> list[str]:
    (found,) = [b for b in shown.split("\n\n") if b.splitlines()[0] == title]
    return found.splitlines()


def test_all_sections_fit_the_width(shown: str) -> None:
    titles = [lines.splitlines()[0] for lines in shown.split("\n\n")]
    assert titles == [
        *("Overview", "Rows and labels by split", "Rows and labels by day", "Coverage of the categorical fields"),
        *("Id spaces", "Dense fields", "Multi-valued fields", "Weights of the rows", "Length of the histories"),
        *("Stored events", "Size on disk", "Source files", "Provenance", "All 940 rows were read."),
    ]
    assert max(map(width, shown.splitlines())) <= WIDTH
    assert not any(line.endswith(" ") for line in shown.splitlines())


def test_figures_stand_in_line_under_their_titles(shown: str, toy: Toy) -> None:
    lines = block(shown, "Rows and labels by split")
    assert lines[3:5] == [
        "                     ──── click ─────  ───── buy ──────",
        "split  rows   share  positives   rate  positives   rate",
    ]
    clicks = toy.frames["train"]["label:click"]
    assert lines[5].split()[:5] == ["train", "700", "74.47%", str(clicks.sum()), share(clicks.mean())]
    ends = {len(line) for line in lines[4:]}
    assert len(ends) == 1


def test_a_name_is_given_once_for_its_splits(shown: str) -> None:
    rows = [line.split() for line in block(shown, "Length of the histories") if "%" in line]
    assert [row[0] for row in rows] == ["view", "valid", "test", "cart", "valid", "test"]


def test_tables_name_the_fields_that_share_them(shown: str) -> None:
    lines = block(shown, "Id spaces")
    assert [" ".join(line.split()) for line in lines if line.startswith(("item", "shop"))] == [
        "item hash 50 – item, view.item, cart.item",
        "shop vocabulary 12 3 shop, view.shop",
    ]


def test_provenance_is_told_and_statistics_are_not(shown: str) -> None:
    assert "raw <b>.csv  1.23 MB  0123456789ab…" in shown
    lines = [" ".join(line.split()) for line in block(shown, "Provenance")]
    assert {"options min_count 3", "seed 2017", "dropped_duplicates 60", "versions python 3.11"} <= set(lines)
    assert "statistics" not in shown


def test_control_characters_of_names_are_not_obeyed(shown: str) -> None:
    assert "\x1b" not in shown
    assert "<script>alert('x')</script>&·[31m" in shown


def test_a_sample_says_so(toy: Toy) -> None:
    shown = text(inspect_prepared(toy.path, InspectionOptions(rows=64)))
    assert shown.count("192 of 940 rows were read") == 2
    assert "rows and positives are fewer than there are" in " ".join(shown.split())


def test_a_long_table_loses_its_middle_and_says_how_much() -> None:
    rows = tuple((f"day {i}", str(i)) for i in range(MOST_ROWS + 23))
    lines = table(Section("days", "", "", (Column("day", number=False), Column("rows")), rows))
    assert len(lines) == 1 + MOST_ROWS + 1
    assert "23 more rows" in lines[1 + MOST_ROWS // 2]
    assert lines[-1].split() == ["day", "122", "122"]


def test_long_and_chinese_names_are_cut_and_long_text_is_wrapped() -> None:
    columns = (Column("field", number=False), Column("n"), Column("shared by", number=False, wraps=True))
    rows = (("名" * 80, "7", "a field, " * 30), ("short", "12,345", "b"))
    lines = table(Section("x", "", "", columns, rows))
    assert max(map(width, lines)) <= WIDTH
    assert "…" in lines[1]
    assert len(lines) > 5
    ends = {width(line[: line.index(n)]) + len(n) for line, n in ((lines[1], "7"), (lines[-1], "12,345"))}
    assert len(ends) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0%"), (1e-6, "<0.01%"), (0.0514, "5.14%"), (0.999999, ">99.99%"), (1.0, "100%"), (float("nan"), "–")],
)
def test_a_share_never_reads_as_nothing_or_all_when_it_is_not(value: float, expected: str) -> None:
    assert share(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((0.0, "0.000"), (1.0, "1.000"), (-21.664, "-21.66"), (118.64, "118.6"), (999.97, "1000"), (1234.5, "1,234")),
        *((1.567e-10, "1.57e-10"), (2.5e9, "2.50e+09"), (float("nan"), "–")),
    ],
)
def test_figures_have_four_digits(value: float, expected: str) -> None:
    assert figure(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(17, "17 B"), (12_400_000, "12.4 MB"), (7.3e13, "73 TB")])
def test_sizes(value: float, expected: str) -> None:
    assert size(value) == expected
