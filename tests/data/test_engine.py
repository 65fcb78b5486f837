"""Two engines, one definition: the same raw files through DuckDB and through Spark give the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from data import criteo, taobao, taobao_x1, userbehavior
from data.generate import RawOptions, generate
from data.generate_criteo import CriteoRaw
from data.generate_log import UserBehaviorRaw
from data.generate_taobao import TaobaoRaw, TaobaoX1Raw
from data.preparation import DataError, PreparationOptions
from kunlun.features import SCHEMA_FILE, FeatureSchema

CASES = {
    "taobao": (TaobaoRaw(impressions=600, events=6_000), taobao.prepare, taobao.TaobaoOptions(min_count=3)),
    "userbehavior": (UserBehaviorRaw(rows=1_500), userbehavior.prepare, userbehavior.UserBehaviorOptions()),
    "taobao-x1": (TaobaoX1Raw(rows=400), taobao_x1.prepare, taobao_x1.TaobaoX1Options(min_count=2)),
    "criteo": (CriteoRaw(rows=800), criteo.prepare, criteo.CriteoOptions(encoding="hash", buckets=False)),
}
BAD_LINE = "not, a row\n"


@pytest.fixture(scope="module", autouse=True)
def quick_spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny queries, each run once: to interpret them is faster than to compile them."""
    folder = tmp_path_factory.mktemp("spark")
    quick = ("spark.sql.codegen.wholeStage false", "spark.sql.codegen.factoryMode NO_CODEGEN")
    (folder / "spark-defaults.conf").write_text("\n".join(quick))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_CONF_DIR", str(folder))
        yield


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("java") and find_spec("pyspark")), reason="Spark needs PySpark and Java")
@pytest.mark.parametrize("name", CASES)
def test_both_engines_write_the_same_files(tmp_path: Path, name: str) -> None:
    raw_options, prepare, options = CASES[name]
    schemas = prepare_with_both(tmp_path, name, raw_options, prepare, replace(options, on_bad_row="skip"))
    duckdb, spark = (files(tmp_path / engine) for engine in ("duckdb", "spark"))
    assert duckdb.pop("rejected.csv") == spark.pop("rejected.csv")
    assert "schema.json" in duckdb
    del duckdb[SCHEMA_FILE], spark[SCHEMA_FILE]  # it has the time of its making
    assert duckdb.keys() == spark.keys()
    assert [path for path in duckdb if duckdb[path] != spark[path]] == []
    one, other = (replace(schema, provenance={}) for schema in schemas)
    assert one == other
    for key in ("counts", "statistics", "source", "fingerprint"):
        assert schemas[0].provenance[key] == schemas[1].provenance[key], key


def prepare_with_both(
    folder: Path, name: str, raw_options: RawOptions, prepare: Callable, options: PreparationOptions
) -> list[FeatureSchema]:
    raw = folder / "raw"
    generate(name, raw, raw_options)
    with max(raw.iterdir(), key=lambda path: path.stat().st_size).open("a") as file:
        file.write(BAD_LINE)
    return [prepare(raw, folder / engine, replace(options, engine=engine)) for engine in ("duckdb", "spark")]


def test_without_pyspark_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
    generate("criteo", tmp_path / "raw", CriteoRaw(rows=20))
    with pytest.raises(
        DataError, match=r"--engine spark needs PySpark: pip install 'kunlun-rec\[spark\]', and Java 17"
    ):
        criteo.prepare(tmp_path / "raw", tmp_path / "out", criteo.CriteoOptions(engine="spark"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
