"""LightGBM with hand-made features on prepared rows, the bar for the models: `python -m benchmarks.lightgbm_baselines`.

Rows come from the same reader, and values from the same metrics, as those of the models. The number of trees is chosen
in one of two ways; either way the reported model is then fitted on all of train, with the features' statistics too:
* `holdout`: by the log loss on the last tenth of train in time, from trees fitted on the first nine tenths. Neither the
  valid nor the test split took part in any choice.
* `valid`: by the log loss on the valid split, which is how the best checkpoint of a model is chosen. Its valid values
  are those to compare with a model's best valid values; its test values are as unbiased as a model's.
Settings of LightGBM and features were chosen on the held-back tenth of train.

The features are those of `benchmarks.lightgbm_features`.

Legend: R rows of a split · F features.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import torch

from benchmarks.lightgbm_features import Features, Rows, fitted_features, read
from benchmarks.machine import device, versions
from kunlun.features import FeatureSchema
from kunlun.training.metrics import CTRMetrics

PARAMETERS: dict[str, dict[str, Any]] = {
    "userbehavior": {"num_leaves": 15, "min_data_in_leaf": 100, "learning_rate": 0.03, "lambda_l2": 10.0},
    "criteo": {"num_leaves": 15, "min_data_in_leaf": 100, "learning_rate": 0.03, "lambda_l2": 10.0},
}
# The plain set for histories: how many events, same items and same categories, by type, and how recent the last was.
COUNTS = re.compile(r"(events|age|same_item|same_category|same_item_age|same_category_age)_(all|pv|cart|fav|buy)")
COMMON = {
    "objective": "binary",
    "feature_fraction": 0.3,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def dataset(features: Features, rows: Rows) -> lgb.Dataset:
    """Its `data` is the matrix (R, F)."""
    matrix = np.column_stack(list(features.values())).astype(np.float32)
    return lgb.Dataset(matrix, rows.labels, feature_name=list(features), free_raw_data=False)


def held_back(rows: Rows) -> np.ndarray:
    """(R,) bool: the last tenth in time; without times by row order, which is then the order of time."""
    when = np.arange(len(rows)) if rows.request_time is None else rows.request_time
    return when > np.quantile(when, 0.9)


def fit_trees(train: lgb.Dataset, check: lgb.Dataset | None, parameters: dict[str, Any], rounds: int) -> lgb.Booster:
    """With `check`, stops when its log loss has not fallen for 100 trees (`best_iteration`)."""
    if check is None:
        return lgb.train(parameters, train, rounds)
    check.reference = train
    stop = lgb.early_stopping(100, verbose=False)
    return lgb.train(parameters, train, rounds, valid_sets=[check], callbacks=[stop])


def evaluate(schema: FeatureSchema, model: lgb.Booster, trees: int, rows: Rows, table: lgb.Dataset) -> dict[str, float]:
    """The metrics that models are measured by."""
    metrics = CTRMetrics(schema.tasks[0].train_rate, schema.users)
    logits = torch.from_numpy(np.asarray(model.predict(table.data, num_iteration=trees, raw_score=True)))
    user = None if rows.user is None else torch.from_numpy(rows.user)
    metrics.update(logits, torch.from_numpy(rows.labels), user=user)
    return {name: float(value) for name, value in metrics.compute().items()}


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """All seeds and both choices of the number of trees."""
    schema = FeatureSchema.load(args.path)
    if schema.name != args.data:
        raise SystemExit(f"{args.path} holds {schema.name!r}, not {args.data!r}: pass the directory of the latter")
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    splits: dict[str, Rows] = {
        name: read(args.path, schema, name) for name in ("train", "valid", "test") if schema.rows[name]
    }
    feature_seconds = time.perf_counter() - start
    if not {"train", "valid"} <= set(splits):
        raise SystemExit(f"{args.path}: the train and the valid split must have rows, but it has {schema.rows}")
    late = held_back(splits["train"])
    early_rows, late_rows = splits["train"].part(~late), splits["train"].part(late)
    results, importance = [], {}

    def build(fit: Rows, apply: Rows | None, seed: int) -> lgb.Dataset:
        features = fitted_features(args.path, schema, fit, apply, seed)
        if args.features == "counts":
            features = {name: values for name, values in features.items() if COUNTS.fullmatch(name)}
        return dataset(features, fit if apply is None else apply)

    for seed in args.seeds:
        parameters = COMMON | PARAMETERS[args.data] | {"seed": seed, "num_threads": args.threads}
        early, check = (build(early_rows, apply, seed) for apply in (None, late_rows))
        chosen = fit_trees(early, check, parameters, args.rounds)
        result: dict[str, Any] = {"seed": seed, "holdout_log_loss": chosen.best_score["valid_0"]["binary_logloss"]}
        if not args.holdout_only:
            tables = {
                name: build(splits["train"], None if name == "train" else rows, seed) for name, rows in splits.items()
            }
            # A model of its own for each way to choose: a booster that stopped early may be shorter than the other.
            models = {
                "holdout": fit_trees(tables["train"], None, parameters, chosen.best_iteration),
                "valid": fit_trees(tables["train"], tables["valid"], parameters, args.rounds),
            }
            trees = {"holdout": chosen.best_iteration, "valid": models["valid"].best_iteration}
            result["trees"] = trees
            for choice, model in models.items():
                result[choice] = {
                    name: evaluate(schema, model, trees[choice], splits[name], tables[name])
                    for name in splits
                    if name != "train"
                }
        gain = chosen.feature_importance("gain")
        importance = dict(
            sorted(zip(chosen.feature_name(), (gain / gain.sum()).tolist(), strict=True), key=lambda x: -x[1])
        )
        results.append(result)
        print(json.dumps(result), flush=True)
    return {
        "benchmark": "lightgbm_baselines",
        "data": {"name": schema.name, "rows": schema.rows, "fingerprint": schema.provenance.get("fingerprint")},
        "device": device(args.threads),
        "versions": versions("lightgbm", "numpy", "torch"),
        "settings": COMMON | PARAMETERS[args.data] | {"rounds": args.rounds},
        "features": len(importance),
        "feature_seconds": feature_seconds,
        "importance_by_gain": dict(list(importance.items())[:20]),
        "feature_set": args.features,
        "seeds": args.seeds,
        "results": results,
        "summary": {} if args.holdout_only else summarise(results),
    }


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) over seeds of every value."""
    summary: dict[str, Any] = {}
    for choice in ("holdout", "valid"):
        for split, values in results[0][choice].items():
            for name in values:
                seen = np.array([r[choice][split][name] for r in results])
                deviation = float(seen.std(ddof=1)) if len(seen) > 1 else None
                summary.setdefault(choice, {}).setdefault(split, {})[name] = {
                    "mean": float(seen.mean()),
                    "std": deviation,
                }
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table; with --out, write the same numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(PARAMETERS))
    parser.add_argument("--path", type=Path, required=True, help="the prepared data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=2000, help="most trees")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", choices=["all", "counts"], default="all", help="counts: userbehavior's plain set")
    parser.add_argument(
        "--holdout-only", action="store_true", help="only the held-back tenth of train: to choose settings"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    report = benchmark(args)
    for choice, splits in report["summary"].items():
        for split, values in splits.items():
            shown = "  ".join(
                f"{name} {v['mean']:.4f}" + ("" if v["std"] is None else f" ± {v['std']:.4f}")
                for name, v in values.items()
            )
            print(f"trees chosen on {choice:8} {split:6} {shown}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
