"""What a variant costs, read from what ``python cli.py benchmark`` wrote.

The one place that knows where in that JSON a number is; what is not in it is None, and not shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PLACES = {
    "flops": "flops_per_sample",
    "parameters_dense": "parameters.dense",
    "parameters_embedding": "parameters.embedding",
    "training_qps": "training.samples_per_second",
    "inference_qps": "inference.samples_per_second",
    "latency_p50": "inference.latency_ms.p50",
    "latency_p99": "inference.latency_ms.p99",
    "mfu": "training.mfu",
    "peak_memory": "peak_memory_bytes",
}


@dataclass(frozen=True)
class Costs:
    """FLOPs are forward, per sample; QPS are samples per second; latencies milliseconds; memory bytes; MFU a share.

    ``components``: part of the model → its forward FLOPs per sample.
    """

    flops: float | None = None
    parameters_dense: float | None = None
    parameters_embedding: float | None = None
    training_qps: float | None = None
    inference_qps: float | None = None
    latency_p50: float | None = None
    latency_p99: float | None = None
    mfu: float | None = None
    peak_memory: float | None = None
    components: Mapping[str, float] | None = None

    @classmethod
    def of(cls, efficiency: Mapping[str, Any] | None) -> Costs:
        """The costs in ``efficiency``; of nothing, none."""
        if not efficiency:
            return cls()
        found = {name: _number(efficiency, place) for name, place in _PLACES.items()}
        return cls(**found, components=efficiency.get("flops"))


def _number(tree: Any, dotted: str) -> float | None:
    for key in dotted.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return float(tree) if isinstance(tree, int | float) and math.isfinite(tree) else None
