"""What a sample costs at the paper's sizes, and what window, CompSkip and event personalization save.

    python -m benchmarks.paper_flops

The model is configs/models/base.yaml on the synthetic schema, with 1000 events of each of its three types. Its sizes
are those that the paper states, and where it states none, the project's own; none is tuned to meet published savings.
No tensor is allocated: FLOPs are counted from shapes, forward, 1 multiply-add = 2, matrix products only. A saving is
(with − without) / without, where without is the ablation that puts back what the component replaced; the published ones
are Meta's, at sizes and on features that are not public, so the residual says how far apart two different models are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from data import SyntheticData
from kunlun.configuration import load_configs
from kunlun.features import FeatureSchema
from kunlun.models import Kunlun

OUT = Path(__file__).parent / "results" / "paper_flops.json"
EVENTS = 1000
# component: its ablation, and the change of FLOPs that the paper reports for it
SAVINGS = {
    "window": ("no_window", -0.295),
    "compskip": ("no_compskip", -0.431),
    "event_personalization": ("no_event_personalization", -0.11),
}


def arguments(*ablations: str) -> dict[str, Any]:
    """Those of the model in models/base and then ``ablations``."""
    return load_configs(["models/base", *ablations]).values["model"]["init_args"]


def count(schema: FeatureSchema, *ablations: str) -> dict[str, int]:
    """FLOPs of a sample by part."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Kunlun, skip={"schema"})
    chosen = parser.instantiate(parser.parse_object(arguments(*ablations))).as_dict()
    with torch.device("meta"):
        model = Kunlun(schema, **chosen)
    return model.flops({event.name: EVENTS for event in schema.events})


def report() -> dict[str, Any]:
    schema = SyntheticData("tiny").schema.with_max_length(EVENTS)
    full = count(schema)
    savings = {}
    for component, (ablation, published) in SAVINGS.items():
        without = count(schema, f"ablations/{ablation}")
        change = sum(full.values()) / sum(without.values()) - 1
        savings[component] = {
            "without": f"ablations/{ablation}",
            "flops_without": sum(without.values()),
            "change": round(change, 4),
            "published": published,
            "residual": round(change - published, 4),
        }
    return {
        "sizes": "as the paper states them, else the project's own; not tuned to meet the published changes",
        "configuration": {
            "model": "models/base",
            "arguments": arguments(),
            "events": {event.name: EVENTS for event in schema.events},
        },
        "flops_per_sample": sum(full.values()),
        "flops": full,
        "savings": savings,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args(argv).out
    found = report()
    total = found["flops_per_sample"]
    print(f"Kunlun at models/base, {EVENTS} events of each type: {total / 1e9:.2f} GFLOPs per sample")
    for part, flops in found["flops"].items():
        print(f"  {part:<16}{flops / 1e9:8.3f}  {flops / total:6.1%}")
    for component, saving in found["savings"].items():
        print(f"{component}: {saving['change']:+.1%} (published {saving['published']:+.1%})")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
