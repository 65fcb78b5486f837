"""Your own tables, wrong: every fault is told with its place and a remedy, and leaves nothing behind."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.preparation import DataError, PreparationOptions
from data.table import prepare
from kunlun.features import FeatureSchema
from tests.data.test_table import START, read_all, tiny

YAML = """\
name: shop
user: u
time: {column: t, unit: s}
labels: [y]
dense: [d]
sparse: [x]
bags: [b]
key: k
weight: w
events:
  type: a
  types: [view, buy]
  known: {column: n, unit: s}
  fields: [x]
"""


def rows(**columns: Any) -> pd.DataFrame:
    more = {"d": 1.5, "b": [[1, 2]] * 40, "k": np.arange(40), "w": 1.0}
    return tiny(40, **{**more, **columns})


def log(**columns: Any) -> pd.DataFrame:
    whole = np.arange(20)
    own = {"u": whole % 5, "t": START - 50 + whole, "n": START - 40 + whole, "a": "view", "x": whole % 3}
    return pd.DataFrame({**own, **columns})


def changed(values: Any, row: int, value: Any) -> list[Any]:
    """``values`` as a list with ``value`` in the 1-based ``row``."""
    out = list(values)
    out[row - 1] = value
    return out


def attempt(
    folder: Path, yaml: str = YAML, table: Any = None, events: Any = None, suffix: str = ".parquet", **options: Any
) -> FeatureSchema:
    """Prepare; where that fails, nothing is left."""
    for name, frame in (("rows", rows() if table is None else table), ("log", log() if events is None else events)):
        if isinstance(frame, pd.DataFrame) and suffix == ".parquet":
            frame.to_parquet(folder / f"{name}{suffix}")
        elif isinstance(frame, pa.Table):
            pq.write_table(frame, folder / f"{name}{suffix}")
        else:
            text = frame.to_csv(index=False) if isinstance(frame, pd.DataFrame) else frame
            (folder / f"{name}{suffix}").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "my.yaml").write_text(yaml)
    places = (folder / f"rows{suffix}", folder / f"log{suffix}" if re.search("^events:", yaml, re.M) else None)
    try:
        return prepare(*places, folder / "my.yaml", folder / "out", PreparationOptions(**options))
    except DataError:
        assert not [path for path in folder.iterdir() if path.name.startswith("out")]
        raise


def test_what_the_other_tests_break_is_good(tmp_path: Path) -> None:
    assert sum(attempt(tmp_path).rows.values()) == 40


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (YAML.replace("sparse:", "sparce:"), r"my\.yaml:6: sparce: unknown key.*did you mean 'sparse'\?"),
        (YAML.replace("unit: s}\nl", "unit: seconds}\nl"), r"my\.yaml:3: time\.unit: expected one of s, ms, us"),
        (YAML.replace(", unit: s}\nl", "}\nl"), r"my\.yaml:3: time\.unit: say which: s, ms, us, ns or timestamp"),
        (YAML.replace("{column: t, unit: s}\nl", "t\nl"), r"my\.yaml:3: time: say what its numbers count"),
        (YAML.replace("labels: [y]\n", ""), r"my\.yaml: labels: name the column"),
        (YAML.replace("labels: [y]", "labels: []"), r"my\.yaml:4: labels: at least one is needed"),
        (YAML.replace("labels: [y]", "labels: [y, y]"), r"my\.yaml:4: labels: 'y' is there 2 times"),
        (YAML.replace("[d]", "{d: lgo}"), r"my\.yaml:5: dense\.d: expected .*did you mean 'log'\?"),
        (YAML.replace("[x]\nb", "[a b]\nb"), r"my\.yaml:6: sparse\.a b: 'a b' must consist of letters.*{column: …}"),
        (YAML.replace("[x]\nb", "{x: {rows: 5}}\nb"), r"my\.yaml:6: sparse\.x\.rows: is for policy: hash"),
        (YAML.replace("[x]\nb", "{x: {policy: hash}}\nb"), r"sparse\.x\.rows: say how many rows.*at least 3"),
        (YAML.replace("[x]\nb", "{x: {policy: hash, rows: 9, min_count: 2}}\nb"), r"min_count: is for policy: voc"),
        (YAML.replace("[x]\nb", "{x: {min_count: 0}}\nb"), r"sparse\.x\.min_count: must be at least 1, not 0"),
        (YAML.replace("[x]\nb", "{x: {min_cuont: 2}}\nb"), r"my\.yaml:6: sparse\.x\.min_cuont: unknown.*'min_count'"),
        (
            YAML.replace("[x]\nb", "{x: {min_count: 3}}\nb").replace("fields: [x]", "fields: {x: {min_count: 4}}"),
            r"my\.yaml:14: events\.fields\.x: shares the table 'x' with sparse\.x, which has another policy",
        ),
        (YAML.replace("[x]\nb", "{x: {table: X}}\nb"), r"differs from .* by capitals only"),
        (YAML.replace("[b]", "{b: {max_length: 0}}"), r"my\.yaml:7: bags\.b\.max_length: must be at least 1, not 0"),
        (YAML.replace("[b]", "[labels]"), r"my\.yaml:7: bags\.labels: the name is taken; give it another: my_labels"),
        (YAML.replace("fields: [x]", "fields: [time]"), r"events\.fields\.time: the name is taken"),
        (YAML.replace("types: [view, buy]", "types: [items]"), r"events\.types\.items: the name 'items' is taken"),
        (
            YAML.replace("types: [view, buy]", "types: {v: [1, 2], b: 2}"),
            r"events\.types: the value '2' is both v and b",
        ),
        (YAML.replace("  types: [view, buy]\n", ""), r"events\.types: say which values of 'a' are event types"),
        (YAML.replace("  type: a\n", ""), r"my\.yaml:11: events\.types: without events\.type.*there is one"),
        (YAML.replace("  fields: [x]\n", ""), r"my\.yaml:10: events\.fields: name what an event shows"),
        (YAML.replace("user: u\n", ""), r"my\.yaml: user: histories need the user of the impressions"),
        (YAML.replace("time: {column: t, unit: s}\n", ""), r"my\.yaml: time: histories need the time of the impr"),
        (YAML + "split: {by: week}\n", r"my\.yaml:15: split\.by: expected .*column, files"),
        (YAML + "split: {valid: 0.6, test: 0.5}\n", r"my\.yaml:15: split\.valid: 0\.6 and test 0\.5 leave no rows"),
        (YAML + "split: {valid: 2023-11-14}\n", r"my\.yaml:15: split\.valid: '2023-11-14' lacks the time zone"),
        (YAML + "split: {valid: soon}\n", r"split\.valid: 'soon' is no time such as 2024"),
        (YAML + "split: {valid: 2024-01-02T00:00Z, test: 0.1}\n", r"split\.test: must be a time like the other"),
        (YAML + "split: {valid: 2024-01-02T00:00Z, test: 2024-01-01T00:00Z}\n", r"split\.test: must begin after valid"),
        (YAML + "split: {by: row, valid: 1.5}\n", r"split\.valid: must be a share of the rows.*not 1\.5"),
        (YAML + "split: {by: row, train: 0}\n", r"split\.train: by row, train is what valid and test leave"),
        (YAML + "split: {by: column}\n", r"split\.column: say which column tells the split"),
        (YAML + "split: {by: column, column: y, valid: train}\n", r"split\.valid: 'train' is train already"),
        (YAML + "split: {by: column, column: y, valid: 0.1}\n", r"a share is for by: time, user or row"),
        (YAML + "split: {by: files, valid: v}\n", r"my\.yaml:15: split\.train: say which file it is"),
        (YAML + "split: {column: y}\n", r"split\.column: is for by: column"),
        ("labels: [y]\nsparse: [x]\nsplit: {by: time}\n", r"my\.yaml:3: split\.by: a split by time needs the column"),
        ("labels: [y]\n", r"the model would see nothing of the impressions"),
        (YAML + "delimiter: ';;'\n", r"my\.yaml:15: delimiter: must be one character"),
        (YAML + "min_count: 0\n", r"min_count: must be at least 1, not 0"),
        (YAML.replace("unit: s}\nl", "unit: s, zone: Mars}\nl"), r"my\.yaml:3: time\.zone: 'Mars' is no time zone"),
        ("name: [", r"my\.yaml:\d: not valid YAML"),
        (YAML + "name: again\n", r"my\.yaml:15: name: given twice"),
    ],
)
def test_a_faulty_description(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        attempt(tmp_path, yaml)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            rows().drop(columns="x").assign(xx=1),
            r"rows\.parquet has no column 'x'; did you mean 'xx'\? .*my\.yaml:6: sp",
        ),
        (rows(x=0.5), r"column 'x' holds double, but .*my\.yaml:6: sparse\.x needs something else: numbers with fract"),
        (rows(b=[[0.5]] * 40), r"column 'b' holds list<element: double>, .*bags\.b needs.*numbers with fractions"),
        (rows(b=3), r"column 'b' holds int64, but .*: a column of lists is needed, or text with a separator"),
        (rows(b="1|2"), r"column 'b' holds text.*say what parts the elements of the text, as in separator: '\|'"),
        (rows(t=pd.Timestamp("2024-01-05")), r"column 't' holds timestamp.*my\.yaml:3: time.*write unit: timestamp"),
        (rows(y=[[1]] * 40), r"column 'y' holds list.*a label is 0 or 1"),
        (rows(d=[[1]] * 40), r"column 'd' holds list.*a number is needed"),
        (rows(x=pd.Timestamp("2024-01-05")), r"column 'x' holds timestamp.*a category is a whole number, text or"),
        (rows(y=changed([0, 1] * 20, 7, 2)), r"rows\.parquet, row 7, column y: expected the label, 0 or 1.*found 2"),
        (rows(y=changed([0.0, 1.0] * 20, 7, None)), r"row 7, column y: expected the label.*found nothing"),
        (rows(y=changed(["0", "TRUE"] * 20, 9, "yes")), r"row 9, column y: expected the label.*found 'yes'"),
        (rows(u=pd.array(changed(range(40), 3, None), "Int64")), r"row 3, column u: expected a user, found nothing"),
        (rows(u=changed(["a"] * 40, 3, "")), r"row 3, column u: expected a user, found ''"),
        (rows(t=pd.array(changed([START] * 40, 5, None), "Int64")), r"row 5, column t: .*found nothing"),
        (rows(t=changed([START] * 40, 5, START * 1000)), r"row 5, column t: expected a time in s since 1970, between"),
        (rows(t=changed([START] * 40, 5, -1)), r"row 5, column t: .*between 1970 and 2100, found -1"),
        (
            rows(t=np.array(changed([START] * 40, 5, 2**64 - 1), np.uint64)),
            r"row 5, column t: .*found 18446744073709551615",
        ),
        (rows(t=changed([float(START)] * 40, 5, float("nan"))), r"row 5, column t: .*found nothing"),
        (rows(t=changed([str(START)] * 40, 5, "noon")), r"row 5, column t: .*found 'noon'"),
        (rows(d=changed([1.0] * 40, 4, float("inf"))), r"row 4, column d: expected a finite number.*found inf"),
        (rows(d=changed(["1"] * 40, 4, "nan")), r"row 4, column d: expected a finite number.*found 'nan'"),
        (rows(d=changed([1.0] * 40, 4, 1e31)), r"row 4, column d: expected a finite number below 1e\+30"),
        (rows(w=changed([1.0] * 40, 4, -0.5)), r"row 4, column w: expected a finite number, at least 0, found -0\.5"),
        (rows(w=changed([1.0] * 40, 4, None)), r"row 4, column w: expected a finite number, at least 0, found nothing"),
        (
            rows(k=changed(range(40), 30, 3)),
            r"row 30, column k: expected a key that has not come before, found 3 of rows",
        ),
        (
            rows(k=changed([str(i) for i in range(40)], 2, "")),
            r"row 2, column k: exp",
        ),
        (rows()[:0], r"rows\.parquet: there are no rows in it"),
    ],
)
def test_a_bad_impression(tmp_path: Path, table: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        attempt(tmp_path, table=table)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (log().drop(columns="n"), r"log\.parquet has no column 'n'.*asked for by .*my\.yaml:13: events\.known"),
        (log().drop(columns="u"), r"log\.parquet has no column 'u'.*asked for by .*my\.yaml:2: user"),
        (log(a=changed(["view", "buy"] * 10, 6, "vew")), r"row 6, column a: expected one of view, buy, found 'vew'"),
        (log(a=changed(["view"] * 20, 6, None)), r"row 6, column a: expected one of view, buy, found nothing"),
        (log(u=pd.array(changed(range(20), 6, None), "Int64")), r"log\.parquet, row 6, column u: expected a user"),
        (log(t=changed([START - 99] * 20, 6, 2**40)), r"row 6, column t: expected a time in s"),
        (log(n=changed([START] * 20, 6, START - 1000)), r"row 6, column n: expected a time not before the event happ"),
        (log(n=pd.array(changed([START] * 20, 6, None), "Int64")), r"row 6, column n: expected a time in s"),
        (log()[:0], r"log\.parquet: there are no rows in it"),
    ],
)
def test_a_bad_event(tmp_path: Path, events: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        attempt(tmp_path, events=events)


TEXT = "user: u\ntime: {column: t, unit: s}\nlabels: [y]\nsparse: [x]\n"


def lines(*bad: str) -> bytes:
    good = [f"{i % 5},{START + i},{i % 2},v{i % 3}" for i in range(30)]
    return "\n".join(["u,t,y,x", *good[:10], *bad, *good[10:], ""]).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines("1,2,3"), r"rows\.csv, row 11: expected 4 columns parted by ',', found 3"),
        (lines("1,2,3,4,5"), r"rows\.csv, row 11: expected 4 columns parted by ',', found 5"),
        (lines(""), r"rows\.csv, row 11, column u: expected a user, found nothing"),
        (lines('1,1700000000,1,"a'), r"rows\.csv, row 11, column x: a quotation mark that opens a value is not closed"),
        (lines('1,1700000000,"1,a'), r"rows\.csv, row 11: expected 4 columns parted by ',', found 3"),
        (lines('1,1700000000,1,"a\nb"', "1,2"), r"row 12: expected 4 columns"),
        (lines("1,1700000000,1,a\udcffb"), r"row 11, column x: the text is not UTF-8"),
        (lines("1,17e9e9,1,a"), r"row 11, column t: expected a time in s since 1970.*found '17e9e9'"),
        (lines("1,1700000000,1.5,a"), r"row 11, column y: expected the label.*found '1\.5'"),
        (b"", r"rows\.csv: there is nothing in it"),
        (b"u,t,y,x\n", r"rows\.csv: there are no rows in it"),
        (b"u,t,y,y\n1,2,3,4\n", r"rows\.csv: two columns are called 'y'"),
        (b"u;t;y;x\n1;2;3;4\n", r"rows\.csv has no column 'u'.*it has u;t;y;x"),
        (lines('1,1700000000,1,"' + "a" * 20_000_000), r"rows\.csv: a row is longer than 8 MiB: a quotation mark"),
    ],
)
def test_a_bad_text_file(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        attempt(tmp_path, TEXT, text, suffix=".csv")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(TEXT)
    with pa.output_stream(str(tmp_path / "cut.csv.gz"), compression="detect") as file:
        file.write(b"u,t,y,x\n" + b"".join(b"%d,%d,1,%d\n" % (i, START + i, i * i % 7919) for i in range(50_000)))
    (tmp_path / "cut.csv.gz").write_bytes((tmp_path / "cut.csv.gz").read_bytes()[:-1000])
    (tmp_path / "no.parquet").write_bytes(b"not at all")
    (tmp_path / "thesis.docx").touch()
    (tmp_path / "empty").mkdir()
    for place, message in (
        ("cut.csv.gz", r"cut\.csv\.gz: the file is truncated or damaged"),
        ("no.parquet", r"no\.parquet: the file is truncated or damaged"),
        ("thesis.docx", r"thesis\.docx: tables are \.parquet, \.csv"),
        ("empty", r"empty holds no file that ends in \.parquet"),
        ("gone", r"gone does not exist; give --impressions"),
        (".", r"holds Parquet and text files side by side"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(tmp_path / place, None, tmp_path / "my.yaml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_splits_without_rows_or_files(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"my\.yaml:5: split\.test: no row is in the test split.*train 20, valid 20, test 0"
    ):
        attempt(tmp_path, TEXT + "split: {valid: 2023-11-14T22:13:40Z, test: 2024-01-01T00:00Z}\n", tiny(40))
    with pytest.raises(DataError, match=r"my\.yaml.*split\.train: no row is in the train split"):
        attempt(tmp_path, TEXT, tiny(40, t=START))
    with pytest.raises(DataError, match=r"no row is in the valid split.*write \[\] if there is none"):
        attempt(tmp_path, TEXT + "split: {by: column, column: p}\n", tiny(40, p=["train", "test"] * 20))
    with pytest.raises(DataError, match=r"row 3, column p: expected one of train, valid, test, found 'dev'"):
        attempt(tmp_path, TEXT + "split: {by: column, column: p}\n", tiny(40, p=changed(["train"] * 40, 3, "dev")))
    schema = attempt(tmp_path, TEXT + "split: {by: column, column: p, valid: []}\n", tiny(40, p=["train", "test"] * 20))
    assert schema.rows == {"train": 20, "valid": 0, "test": 20}
    yaml = tmp_path / "files.yaml"
    yaml.write_text(TEXT + "split: {by: files, train: rows.parquet, valid: val*}\n")
    with pytest.raises(DataError, match=r"files\.yaml:5: split\.valid: .* has no 'val\*' \(there are: "):
        prepare(tmp_path, None, yaml, tmp_path / "out2")
    with pytest.raises(DataError, match=r"rows\.parquet is no folder, but .*files\.yaml:5: split says"):
        prepare(tmp_path / "rows.parquet", None, yaml, tmp_path / "out2")
    yaml.write_text(TEXT + "split: {by: files, train: rows.parquet, valid: rows*}\n")
    with pytest.raises(DataError, match=r"rows\.parquet is both train and valid"):
        prepare(tmp_path, None, yaml, tmp_path / "out2")


def test_events_and_their_description_go_together(tmp_path: Path) -> None:
    rows().to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "my.yaml").write_text(YAML)
    with pytest.raises(DataError, match=r"my\.yaml:10: events describes an event log; give it with --events"):
        prepare(tmp_path / "rows.parquet", None, tmp_path / "my.yaml", tmp_path / "out")
    (tmp_path / "my.yaml").write_text(TEXT)
    with pytest.raises(DataError, match=r"--events .*rows\.parquet is given, but .*my\.yaml: events does not say"):
        prepare(tmp_path / "rows.parquet", tmp_path / "rows.parquet", tmp_path / "my.yaml", tmp_path / "out")


def test_skipped_rows_are_counted_and_kept(tmp_path: Path) -> None:
    table = rows(
        y=changed(changed([0, 1] * 20, 3, 7), 4, -1), k=changed(range(40), 40, 3), w=changed([1.0] * 40, 9, -1.0)
    )
    events = log(a=changed(["view"] * 20, 2, "fly"))
    events = pd.concat([events, events[4:8]], ignore_index=True)
    with pytest.raises(DataError, match=r"row 3, column y"):
        attempt(tmp_path, table=table)
    schema = attempt(tmp_path, table=table, events=events, on_bad_row="skip")
    counts = schema.provenance["counts"]
    assert (counts["impressions_input_rows"], counts["impressions_rejected_rows"]) == (40, 3)
    # The key of row 40 is that of row 4, which is rejected itself: so it has not come before.
    assert sum(schema.rows.values()) == 37
    assert (counts["events_input_rows"], counts["events_rejected_rows"], counts["events_duplicates"]) == (24, 1, 4)
    assert counts["events_kept"] == 24 - 1 - 4
    with (tmp_path / "out/rejected.csv").open(encoding="utf-8") as file:
        rejected = list(csv.DictReader(file))
    places = [(r["file"], r["line"], r["column"]) for r in rejected]
    assert places == [
        ("rows.parquet", "3", "y"),
        ("rows.parquet", "4", "y"),
        ("rows.parquet", "9", "w"),
        ("log.parquet", "2", "a"),
    ]
    assert '"y": 7' in rejected[0]["text"]
    assert 3 in read_all(tmp_path / "out").index


def test_a_repeated_key_is_skipped_too(tmp_path: Path) -> None:
    schema = attempt(tmp_path, table=rows(k=changed(changed(range(40), 40, 3), 20, 3)), on_bad_row="skip")
    assert schema.provenance["counts"]["impressions_rejected_rows"] == 2
    assert sorted(read_all(tmp_path / "out").index) == [i for i in range(40) if i not in (19, 39)]


def test_skipped_lines_keep_the_numbers_of_the_others(tmp_path: Path) -> None:
    text = lines("1,2", "", "3", '1,1700000000,0,"x\ny"', "1,1700000000,nope,a", "1,1700000000,1,\udcff")
    schema = attempt(tmp_path, TEXT, text, suffix=".csv", on_bad_row="skip")
    assert schema.provenance["counts"]["impressions_input_rows"] == 36
    assert schema.provenance["counts"]["impressions_rejected_rows"] == 5
    assert sorted(read_all(tmp_path / "out").index) == [i for i in range(1, 37) if i not in (11, 12, 13, 15, 16)]
    with (tmp_path / "out/rejected.csv").open(encoding="utf-8") as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["11", "12", "13", "15", "16"]


def test_no_good_row_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.parquet: none of its 40 rows is good"):
        attempt(tmp_path, table=rows(y=5), on_bad_row="skip")
