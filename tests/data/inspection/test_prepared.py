"""An inspection against brute force over the rows the data set was written from, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import cli
import data.criteo
import data.userbehavior
from data.inspection import prepared
from data.inspection.collect import Moments
from data.inspection.options import InspectionOptions
from data.inspection.prepared import inspect_prepared, sample_rows
from data.inspection.results import Coverage, Inspection, Lengths, Spread
from kunlun.configuration import PROJECT_ROOT, ConfigError
from tests.data.inspection.conftest import HOSTILE, ROWS, SCHEMA, USERS, Toy


def check_coverage(found: Coverage, ids: pd.Series) -> None:
    assert (found.missing, found.unknown, found.total) == ((ids == 0).sum(), (ids == 1).sum(), len(ids))
    assert found.known == (ids >= 2).sum()


def check_spread(found: Spread, values: pd.Series) -> None:
    assert found.mean == pytest.approx(values.astype(float).mean(), rel=1e-12, abs=1e-12)
    assert found.std == pytest.approx(values.astype(float).std(ddof=0), rel=1e-9)
    assert (found.minimum, found.maximum, found.zeros) == (values.min(), values.max(), (values == 0).sum())


def check_lengths(found: Lengths, values: pd.Series) -> None:
    for percent in (0, 1, 10, 33.3, 50, 90, 99, 100):
        assert found.percentile(percent) == np.percentile(values, percent, method="inverted_cdf")
    assert (found.mean, found.maximum) == (pytest.approx(values.mean()), values.max())
    assert found.share_empty == pytest.approx((values == 0).mean())
    assert found.share_above(7) == pytest.approx((values > 7).mean())


def check_all(found: Inspection, toy: Toy) -> None:
    assert [split.name for split in found.splits] == list(ROWS)
    for split in found.splits:
        frame = toy.frames[split.name]
        assert split.rows == split.read == len(frame)
        assert split.positives == (frame["label:click"].sum(), frame["label:buy"].sum())
        for name in ("item", "shop", HOSTILE):
            check_coverage(split.sparse[name], frame[f"sparse:{name}"])
        for name in ("price", "age"):
            check_spread(split.dense[name], frame[f"dense:{name}"])
        assert split.weight is not None
        check_spread(split.weight, frame["weight"])
        check_lengths(split.bags["tags"].lengths, frame["bag:tags"].map(len))
        check_coverage(split.bags["tags"].coverage, frame["bag:tags"].explode().dropna())
        for event in ("view", "cart"):
            check_lengths(split.histories[event], frame[f"pointer:{event}"])
        day = pd.to_datetime(frame["request_time"], unit="s", utc=True).dt.tz_convert(found.timezone).dt.date
        expected = frame.groupby(day).agg(rows=("user", "size"), click=("label:click", "sum"), buy=("label:buy", "sum"))
        assert [(d.day, d.rows, *d.positives) for d in split.days] == list(expected.itertuples(name=None))
    for event in SCHEMA.events:
        log = found.stored[event.name]
        assert (log.events, log.histories, log.read) == (400, USERS, 400)
        for f in event.fields:
            check_coverage(log.fields[f.name], toy.events[event.name][f.name])


@pytest.mark.parametrize("timezone", ["", "Asia/Shanghai", "Asia/Kathmandu", "America/St_Johns"])
def test_every_figure_is_that_of_the_rows(toy: Toy, timezone: str) -> None:
    found = inspect_prepared(toy.path, InspectionOptions(timezone=timezone))
    assert found.timezone == (timezone or "UTC")
    assert not found.sampled
    check_all(found, toy)


@pytest.mark.parametrize("chunk", [1, 64])
def test_chunks_and_record_batches_of_any_size_give_the_same(
    toy: Toy, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of(toy, tmp_path)
    for split in ROWS:
        (file,) = (path / split).glob("*.arrow")
        table = pa.ipc.open_stream(file.read_bytes()).read_all()
        file.unlink()
        for number, part in enumerate((table.slice(0, 41), table.slice(41, 0), table.slice(41))):
            with pa.ipc.new_stream(str(path / split / f"data-{number}.arrow"), table.schema) as sink:
                sink.write_table(part, max_chunksize=17)
    file = path / "histories" / "view.arrow"
    table = pa.ipc.open_file(file.read_bytes()).read_all()
    with pa.ipc.new_file(str(file), table.schema) as sink:
        sink.write_table(table, max_chunksize=99)
    monkeypatch.setattr(prepared, "CHUNK_ROWS", chunk)
    check_all(inspect_prepared(path, InspectionOptions()), toy)


def test_a_large_mean_does_not_swallow_a_small_deviation() -> None:
    values = (1e9 + np.random.default_rng(0).normal(size=(5000, 1))).astype(np.float64)
    moments = Moments(1)
    for part in np.array_split(values, 13):
        moments.add(part)
    assert moments.spreads()[0].std == pytest.approx(values.std(), rel=1e-6)


def test_a_sample_says_that_it_is_one_and_is_spread_over_the_rows(toy: Toy) -> None:
    found = inspect_prepared(toy.path, InspectionOptions(rows=128))
    assert found.sampled
    assert [(split.rows, split.read) for split in found.splits] == [(700, 128), (150, 128), (90, 90)]
    train = found.splits[0]
    assert train.sparse["item"].total == sum(day.rows for day in train.days) == train.read
    assert found.stored["view"].read == 128
    assert len(train.days) >= 2


@pytest.mark.parametrize(("rows", "wanted"), [(1000, 64), (1000, 65), (100_000, 5000), (129, 128), (70, 1), (10, 9)])
def test_sampled_rows_lie_evenly(rows: int, wanted: int) -> None:
    sample = sample_rows(rows, wanted)
    assert (np.diff(sample) > 0).all()
    assert 0 <= sample[0] <= sample[-1] < rows
    assert 0.9 * wanted <= len(sample) <= wanted
    assert np.array_equal(sample, sample_rows(rows, wanted))
    stretches = -(-wanted // prepared.RUN_ROWS)
    assert len(np.unique(sample * stretches // rows)) == stretches


def test_rows_that_alternate_are_sampled_in_their_proportion() -> None:
    # A positive and its negative beside it, as in next-click data: every second row would see one kind only.
    assert (sample_rows(100_000, 1000) % 2).mean() == pytest.approx(0.5, abs=0.01)


def copy_of(toy: Toy, tmp_path: Path) -> Path:
    return shutil.copytree(toy.path, tmp_path / "copy")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_schema(path: Path, change: Callable[[dict], object]) -> None:
    schema = json.loads((path / "schema.json").read_text())
    change(schema)
    (path / "schema.json").write_text(json.dumps(schema))


def offsets_of_fewer(histories: Path) -> None:
    batch = pa.RecordBatch.from_pydict({"offset": pa.array([0, 2, 3])})
    with pa.ipc.new_file(str(histories / "view.offsets.arrow"), batch.schema) as sink:
        sink.write(batch)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda p: (p / "schema.json").unlink(), "is not a prepared data set"),
        (lambda p: (p / "schema.json").write_text("{"), "schema.json cannot be read"),
        (lambda p: (p / "schema.json").write_text("[]"), "schema.json cannot be read"),
        (lambda p: edit_schema(p, lambda s: s.pop("tasks")), "schema.json cannot be read .*'tasks'"),
        (lambda p: edit_schema(p, lambda s: s.update(format=99)), "format 99 cannot be read"),
        (lambda p: edit_schema(p, lambda s: s["rows"].update(train=701)), "700 rows where schema.json counts 701"),
        (lambda p: edit_schema(p, lambda s: s["dense"].pop()), "dense is .* describes 1 values a row"),
        (lambda p: edit_schema(p, lambda s: s["bags"][0].update(name="toys")), "lacks the column 'toys'"),
        (lambda p: shutil.rmtree(p / "test"), "test holds no .*incomplete"),
        (lambda p: (p / "histories" / "view.arrow").unlink(), "view.arrow not found: the data set is incomplete"),
        (lambda p: cut(next((p / "train").glob("*.arrow"))), "damaged or cut short|700"),
        (lambda p: cut(p / "histories" / "view.arrow"), "damaged or cut short"),
        (lambda p: (p / "histories" / "cart.offsets.arrow").write_bytes(b""), "damaged or cut short"),
        (lambda p: offsets_of_fewer(p / "histories"), "view.arrow holds 400 events, its offsets 3;"),
    ],
)
def test_a_damaged_data_set_is_refused_in_one_line(
    toy: Toy, tmp_path: Path, damage: Callable[[Path], object], told: str
) -> None:
    path = copy_of(toy, tmp_path)
    damage(path)
    with pytest.raises(ConfigError, match=told) as refused:
        cli.run(["inspect", str(path)])
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("inspect: ")


def test_times_that_are_no_unix_seconds_are_named(toy: Toy, tmp_path: Path) -> None:
    path = copy_of(toy, tmp_path)
    (file,) = (path / "train").glob("*.arrow")
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    times = pa.array(table["request_time"].to_numpy() * 1000)
    table = table.set_column(table.schema.get_field_index("request_time"), "request_time", times)
    with pa.ipc.new_stream(str(file), table.schema) as sink:
        sink.write_table(table)
    with pytest.raises(ConfigError, match=r"request_time 1700\d+ lies outside the calendar"):
        cli.run(["inspect", str(path)])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "needs a prepared data set first"),
        (["--html=x.html"], "needs a prepared data set first"),
        (["/no/where"], "/no/where: no such directory"),
        (["{toy}", "--htm=x.html"], "--htm: .*did you mean 'html'"),
        (["{toy}", "--rows=few"], "--rows: expected a whole number"),
        (["{toy}", "--rows=-1"], "rows must be 0"),
        (["{toy}", "--max-length=-1"], "max_length must be 0"),
        (["{toy}", "--timezone=Asia/Shanghia"], "did you mean 'Asia/Shanghai'"),
        (["{toy}", "--timezone=/etc"], "timezone '/etc' is not known"),
        (["{toy}", "--html"], "ends in .html"),
        (["{toy}", "--html=/no/where/x.html"], "--html /no/where/x.html: no such directory"),
        (["{toy}", "--html={tmp}/folder.html"], "folder.html is a directory"),
        (["{toy}", "--html={tmp}/full.html"], "full.html cannot be written: No space left"),
    ],
)
def test_a_wrong_command_line_is_refused(toy: Toy, tmp_path: Path, argv: list[str], told: str) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "full.html").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=told):
        cli.run(["inspect", *(argument.format(toy=toy.path, tmp=tmp_path) for argument in argv)])


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--max_length" in text
    assert "works offline" in text


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, cli; cli.run(['inspect', '--help']); sys.exit(bool({'torch', 'plotly'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_real_samples_can_be_inspected(
    sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = sample_data / "taobao_userbehavior.csv.gz"
    schema = data.userbehavior.prepare(raw, tmp_path / "out", data.userbehavior.UserBehaviorOptions())
    found = inspect_prepared(tmp_path / "out", InspectionOptions(max_length=50))
    assert found.timezone == "Asia/Shanghai"
    train = found.splits[0]
    assert {split.name: split.rows for split in found.splits} == schema.rows
    assert train.positives[0] / train.rows == pytest.approx(schema.tasks[0].train_rate)
    for event in schema.events:
        assert train.histories[event.name].mean == pytest.approx(event.mean_length)
        assert found.stored[event.name].events == schema.provenance["counts"][f"{event.name}_events"]
    capsys.readouterr()
    assert cli.run(["inspect", str(tmp_path / "out"), "--max_length=50"]) == 0
    assert "dropped_duplicates" in capsys.readouterr().out


def test_a_data_set_without_times_or_histories_can_be_inspected(
    sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.criteo.prepare(sample_data / "criteo_1tb_day0_10k.tsv.gz", tmp_path / "out", data.criteo.CriteoOptions())
    capsys.readouterr()
    assert cli.run(["inspect", str(tmp_path / "out"), f"--html={tmp_path / 'page.html'}"]) == 0
    text = capsys.readouterr().out
    assert "Rows and labels by day" not in text
    assert "there are no histories" in text
    assert "Dense fields" in text
    assert "C26" in (tmp_path / "page.html").read_text(encoding="utf-8")
