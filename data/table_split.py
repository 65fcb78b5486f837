"""Which rows of your own table are train, valid and test."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np

from data.encoding import WORD, hash_integer, hash_text
from data.preparation import DataError, Workspace, count_rows
from data.prepared import SPLITS
from data.raw import ROW
from data.table_schema import TableSchema
from kunlun.features import TIME


def split_rows(workspace: Workspace, schema: TableSchema, rows: ir.Table) -> ir.Table:
    """``rows`` with the column ``split``."""
    by = schema.split_by()
    if by in ("column", "files"):
        return rows
    valid, test = schema.split_points()
    if by == "time":
        begin: int | None
        then: int | None
        if isinstance(valid, float) and isinstance(test, float):
            begin, then = time_cuts(workspace, rows, valid, test)
        else:
            begin, then = _second(valid), _second(test)
        workspace.statistics["split"] = {"valid_from": begin, "test_from": then}
        valid_ends = [] if then is None else [(rows[TIME] < then, "valid")]
        return rows.mutate(
            split=ibis.cases((rows[TIME] < begin, "train"), *valid_ends, else_="test" if valid_ends else "valid")
        )
    value = rows[ROW] if by == "row" else rows["user"]
    hashed = hash_integer(hash_text(value) if value.type().is_string() else value, schema.split.seed)
    shares = [int(share * (WORD + 1)) for share in (float(valid), float(test))]  # type: ignore[arg-type]
    return rows.mutate(split=ibis.cases((hashed < shares[0], "valid"), (hashed < sum(shares), "test"), else_="train"))


def _second(point: Any) -> int | None:
    return int(point.timestamp()) if isinstance(point, datetime) else None


def time_cuts(workspace: Workspace, rows: ir.Table, valid: float, test: float) -> tuple[int, int]:
    """When valid and test begin, so that the last of the rows are theirs; rows of one second stay together."""
    total = count_rows(rows)
    wanted = np.array([1.0 - valid - test, 1.0 - test]) * total + 1e-6
    cuts: list[int | None] = [None, None]
    seconds = rows.group_by(TIME).aggregate(rows=rows.count()).order_by(TIME)
    up_to, last = 0, 0
    for batch in workspace.batches(seconds):
        times = batch.column(TIME).to_numpy()
        ends = up_to + batch.column("rows").to_numpy().cumsum()
        for i, place in enumerate(np.searchsorted(ends, wanted.astype(np.int64), side="right")):
            if cuts[i] is None and place < len(times):
                cuts[i] = int(times[place])
        up_to, last = int(ends[-1]), int(times[-1])
    return tuple(last + 1 if cut is None else cut for cut in cuts)  # type: ignore[return-value]


def check_splits(schema: TableSchema, where: Callable[[str], str], rows: ir.Table) -> None:
    """DataError: a split that was asked for has no rows."""
    counted = rows.group_by("split").aggregate(rows=rows.count()).to_pyarrow().to_pylist()
    found = {row["split"]: row["rows"] for row in counted}
    by = schema.split_by()
    for name in SPLITS:
        if found.get(name):
            continue
        if name == "train":
            asked = True
        elif by in ("column", "files"):
            asked = bool(schema.split_values(name))
        else:
            asked = schema.split_points()[SPLITS.index(name) - 1] not in (0.0, None)
        if asked:
            key = f"split.{name}"
            remedy = {"column": "write [] if there is none", "files": "remove it if there is none"}
            raise DataError(
                f"{where(key)}: no row is in the {name} split; the splits have "
                f"{', '.join(f'{split} {found.get(split, 0):,}' for split in SPLITS)} rows; "
                + remedy.get(by, "change valid and test" + (", or write 0 if there is none" if name != "train" else ""))
            )
