"""Refused rows: an error that names the place, or a file that holds them as they were."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.preparation import DataError
from data.rejects import COLUMNS, FILE, REMEDY, Rejects, column_name

SOURCE = Path("raw") / "train.csv"


def rows(folder: Path) -> list[list[str]]:
    with (folder / FILE).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("column", ["3 (price)", None])
def test_by_default_the_first_is_an_error_with_its_place_and_the_remedy(tmp_path: Path, column: str | None) -> None:
    rejects = Rejects(tmp_path, skip=False)
    with pytest.raises(DataError) as error:
        rejects.add("raw", SOURCE, 7, column, "found 'x'", "1,2,x", " (4 more rows are bad)")
    place = "raw/train.csv, line 7" + (f", column {column}" if column else "")
    assert str(error.value) == f"{place}: found 'x' (4 more rows are bad); {REMEDY}"
    rejects.close()
    assert list(tmp_path.iterdir()) == []


def test_skipped_rows_are_kept_and_counted_by_their_source(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path, skip=True)
    assert not (tmp_path / FILE).exists()
    rejects.add("clicks", SOURCE, 7, "3 (price)", "found 'x'", "1,2,x")
    rejects.add("clicks", SOURCE, 9, None, "found 2", "1,2")
    rejects.add("users", Path("users.csv"), 2, None, "found 1", "1")
    rejects.close()
    rejects.close()
    assert rejects.counts == {"clicks": 2, "users": 1}
    assert rows(tmp_path) == [
        list(COLUMNS),
        ["train.csv", "7", "3 (price)", "found 'x'", "1,2,x"],
        ["train.csv", "9", "", "found 2", "1,2"],
        ["users.csv", "2", "", "found 1", "1"],
    ]


def test_no_bad_row_makes_no_file(tmp_path: Path) -> None:
    Rejects(tmp_path, skip=True).close()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('",\r\0;\t\x1a\u2028')), max_size=5))
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("rejects")
    rejects = Rejects(folder, skip=True)
    for line, text in enumerate(texts, 1):
        rejects.add("raw", SOURCE, line, None, "bad", text)
    rejects.close()
    assert [row[-1] for row in (rows(folder)[1:] if texts else [])] == texts


def test_columns_are_named_where_they_have_a_name() -> None:
    assert column_name(("user", "item"), 2) == "2 (item)"
    assert column_name(("user", "item"), 3) == "3"
    assert column_name(("user", "item"), None) is None
