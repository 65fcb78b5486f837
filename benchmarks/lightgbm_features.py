"""Features for LightGBM, made by hand from prepared rows with numpy, a batch of rows at a time.

With histories: how the candidate's item and category match the whole, uncut history, and how popular they are in the
log of the training time. Without: counts of ids and out-of-fold target encodings, both fitted on train.

The log of other users after the training time, and how recently another user saw an item, are not used: negatives are
drawn from what others viewed nearby in time, so that such features would tell how negatives were drawn.

Legend: B rows of a batch · R rows of a split · N events of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.reader import History, PreparedSplit, Split
from kunlun.features import MISSING_ID, TIME, UNKNOWN_ID, Batch, FeatureSchema

CHUNK = 4096  # rows read at a time
UNCUT = 2**31
HOUR = 3600.0
DAY = 24 * HOUR
SHANGHAI = 8 * HOUR
DECAYS = {"10m": HOUR / 6, "1h": HOUR, "6h": 6 * HOUR, "1d": DAY, "3d": 3 * DAY}
NEWEST = (1, 3, 10, 50)
SMOOTHING = 20.0
FOLDS = 10

Features = dict[str, np.ndarray]


@dataclass
class Rows:
    """One split in memory: labels (R,), user (R,) or None, request_time (R,) or None, and row-wise features (R,)."""

    labels: np.ndarray
    user: np.ndarray | None
    request_time: np.ndarray | None
    sparse: np.ndarray
    features: Features

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, chosen: np.ndarray) -> Rows:
        """The rows where `chosen` (R,) bool."""
        return Rows(
            self.labels[chosen],
            None if self.user is None else self.user[chosen],
            None if self.request_time is None else self.request_time[chosen],
            self.sparse[chosen],
            {name: values[chosen] for name, values in self.features.items()},
        )


def read(path: Path, schema: FeatureSchema, split: Split) -> Rows:
    """All rows of a split, and their features that need nothing but the row itself."""
    rows = PreparedSplit(path, schema.with_max_length(UNCUT), split, share_histories=False)
    batches, features = [], []
    for first in range(0, len(rows), CHUNK):
        batch = rows.__getitems__(np.arange(first, min(first + CHUNK, len(rows))))
        features.append(row_features(schema, batch))
        batches.append((batch.labels[:, 0], batch.user, batch.request_time, batch.sparse))
    labels, user, request_time, sparse = (
        None if column[0] is None else torch.cat(column).numpy() for column in zip(*batches, strict=True)
    )
    joined = {name: np.concatenate([f[name] for f in features]) for name in features[0]}
    return Rows(labels, user, request_time, sparse, joined)


def row_features(schema: FeatureSchema, batch: Batch) -> Features:
    """Dense values (missing ones as nan where a bucket field tells) and, with histories, matches in them."""
    features = dict(zip(schema.dense, batch.dense.numpy().astype(np.float32).T, strict=True))
    places = {f.name: i for i, f in enumerate(schema.sparse)}
    for name in schema.dense:
        if f"{name}_bucket" in places:
            missing = batch.sparse[:, places[f"{name}_bucket"]].numpy() == MISSING_ID
            features[name] = np.where(missing, np.nan, features[name])
    if schema.events:
        candidate = {f: batch.sparse[:, places[f]].numpy() for f in ("item", "category")}
        features |= history_features(batch, candidate)
        features["hour"] = (batch.request_time.numpy() + SHANGHAI) % DAY / HOUR
    return features


@dataclass
class Events:
    """The events of all types of a batch, sorted by row and then by time.

    row, kind, age (seconds before the request), place (0 = the newest of its row), fields: all (N,).
    """

    row: np.ndarray
    kind: np.ndarray
    age: np.ndarray
    place: np.ndarray
    fields: dict[str, np.ndarray]
    rows: int

    @classmethod
    def merge(cls, batch: Batch) -> Events:
        row, kind, when = [], [], []
        fields: dict[str, list[np.ndarray]] = {"item": [], "category": []}
        for number, event in enumerate(batch.events.values()):
            row.append(event[TIME].segments().numpy())
            kind.append(np.full(len(row[-1]), number))
            when.append(event[TIME].values.numpy())
            for name, parts in fields.items():
                parts.append(event[name].values.numpy())
        rows, times = np.concatenate(row), np.concatenate(when)
        order = np.lexsort((times, rows))
        rows, times = rows[order], times[order]
        ends = np.cumsum(np.bincount(rows, minlength=len(batch)))
        return cls(
            row=rows,
            kind=np.concatenate(kind)[order],
            age=(batch.request_time.numpy()[rows] - times).astype(np.float64),
            place=ends[rows] - 1 - np.arange(len(rows)),
            fields={name: np.concatenate(parts)[order] for name, parts in fields.items()},
            rows=len(batch),
        )

    def count(self, chosen_N: np.ndarray) -> np.ndarray:
        """(B,): the sum of `chosen_N` (bool or weights) over each row's events."""
        return np.bincount(self.row, weights=chosen_N, minlength=self.rows)

    def newest(self, chosen_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,), (B,): log age and place of each row's newest chosen event, nan without one."""
        where = chosen_N.nonzero()[0]
        index_B = np.full(self.rows, -1)
        np.maximum.at(index_B, self.row[where], where)
        found = index_B >= 0
        age_B, place_B = np.full(self.rows, np.nan), np.full(self.rows, np.nan)
        age_B[found], place_B[found] = np.log1p(self.age[index_B[found]]), self.place[index_B[found]]
        return age_B, place_B

    def distinct(self, name: str, chosen_N: np.ndarray) -> np.ndarray:
        """(B,): how many values of a field each row's chosen events have."""
        pairs = np.unique(np.column_stack([self.row[chosen_N], self.fields[name][chosen_N]]), axis=0)
        return np.bincount(pairs[:, 0], minlength=self.rows)


def history_features(batch: Batch, candidate: dict[str, np.ndarray]) -> Features:
    """What the uncut history says of the candidate: each value (B,)."""
    events = Events.merge(batch)
    every = np.ones(len(events.row), bool)
    kinds = {name: events.kind == number for number, name in enumerate(batch.events)}
    masks = {"all": every, **kinds}
    features: Features = {}
    lengths = {name: events.count(mask) for name, mask in masks.items()}
    for name, mask in masks.items():
        features[f"events_{name}"] = lengths[name]
        features[f"age_{name}"], _ = events.newest(mask)
    for what, value_B in candidate.items():
        same = events.fields[what] == value_B[events.row]
        for name, mask in masks.items():
            found = events.count(same & mask)
            features[f"same_{what}_{name}"] = found
            features[f"same_{what}_share_{name}"] = found / np.maximum(lengths[name], 1)
            features[f"same_{what}_age_{name}"], place = events.newest(same & mask)
            if name == "all":
                features[f"same_{what}_place"] = place
        for span, seconds in DECAYS.items():
            weight = np.exp(-events.age / seconds)
            found, total = events.count(same * weight), events.count(weight)
            features[f"same_{what}_decayed_{span}"] = found
            features[f"same_{what}_decayed_share_{span}"] = found / np.maximum(total, 1e-9)
        for newest in NEWEST:
            features[f"same_{what}_newest_{newest}"] = events.count(same & (events.place < newest))
        # Decay by place instead of time: how much of the latest browsing it is, however fast.
        features[f"same_{what}_decayed_places"] = events.count(same * np.exp(-events.place / 10.0))
    same = events.fields["category"] == candidate["category"][events.row]
    features["same_category_items"] = events.distinct("item", same)
    for newest in (10, 50):
        features[f"categories_newest_{newest}"] = events.distinct("category", events.place < newest)
    for what in candidate:
        features[f"distinct_{what}"] = events.distinct(what, every)
    for span, seconds in DECAYS.items():
        features[f"events_within_{span}"] = events.count(events.age < seconds)
    features["same_item_in_category"] = features["same_item_all"] / np.maximum(features["same_category_all"], 1)
    return features


def popularity(path: Path, schema: FeatureSchema, rows: Rows, fitted: bool, until: int) -> Features:
    """Log counts of the candidate's item and category among all events up to `until`, the end of the fitted rows.

    Every candidate, clicked or drawn, stems from one page view of that time; in `fitted` rows it is taken off, because
    other rows have it not.
    """
    histories = [History(path / "histories", event) for event in schema.events]
    features = {}
    for name in ("item", "category"):
        place = [f.name for f in schema.sparse].index(name)
        count = np.zeros(schema.tables[schema.sparse[place].table].rows, np.int64)
        for history in histories:
            count += np.bincount(history.columns[name][history.columns[TIME] <= until], minlength=len(count))
        seen = np.maximum(count[rows.sparse[:, place]] - int(fitted), 0)
        features[f"popularity_{name}"] = np.log1p(seen)
    share = np.maximum(rows.features["same_category_share_all"], 1e-4)
    features["category_lift"] = np.log(share) - features["popularity_category"]
    return features


def id_statistics(schema: FeatureSchema, fit: Rows, apply: Rows | None, seed: int) -> Features:
    """Log count and smoothed target mean of every id, fitted on `fit`; out of fold for `fit` itself (`apply` None)."""
    rows = fit if apply is None else apply
    fold = np.random.default_rng(seed).integers(FOLDS, size=len(fit))
    prior = fit.labels.mean()
    features = {}
    for place, sparse in enumerate(schema.sparse):
        size, ids, target = schema.tables[sparse.table].rows, fit.sparse[:, place], rows.sparse[:, place]
        shown = np.bincount(ids, minlength=size)
        clicked = np.bincount(ids, weights=fit.labels, minlength=size)
        if not sparse.name.endswith("_bucket"):
            # Ids too rare for the vocabulary share the id "unknown": its count is not the count of any of them.
            frequency = np.where(np.arange(size) == UNKNOWN_ID, 1, shown)
            features[f"count_{sparse.name}"] = np.log1p(frequency[target])
        shown_R, clicked_R = shown[target].astype(np.float64), clicked[target]
        if apply is None:
            for number in range(FOLDS):
                inside = fold == number
                shown_R[inside] -= np.bincount(ids[inside], minlength=size)[ids[inside]]
                clicked_R[inside] -= np.bincount(ids[inside], fit.labels[inside], size)[ids[inside]]
        features[f"rate_{sparse.name}"] = (clicked_R + SMOOTHING * prior) / (shown_R + SMOOTHING)
    return features


def fitted_features(path: Path, schema: FeatureSchema, fit: Rows, apply: Rows | None, seed: int) -> Features:
    """All features (R,) of `apply`, or of the rows `fit` themselves; what is counted is counted on `fit`."""
    rows = fit if apply is None else apply
    if schema.events:
        return rows.features | popularity(path, schema, rows, apply is None, int(fit.request_time.max()))
    return rows.features | id_statistics(schema, fit, apply, seed)
