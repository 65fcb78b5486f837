"""What a variant costs, read from what ``python cli.py benchmark`` wrote.

The one place that knows where in that JSON a number is; what is not in it is None, and not shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PLACES: dict[str, tuple[str, ...]] = {
    "flops": ("flops.forward", "flops.per_sample", "flops.total", "flops_per_sample", "flops"),
    "parameters_dense": ("parameters.dense",),
    "parameters_embedding": ("parameters.embedding",),
    "training_qps": ("training.samples_per_second",),
    "inference_qps": ("inference.samples_per_second",),
    "latency_p50": ("inference.latency_ms.p50", "latency_ms.p50", "inference.latency_p50_ms"),
    "latency_p99": ("inference.latency_ms.p99", "latency_ms.p99", "inference.latency_p99_ms"),
    "mfu": ("training.mfu", "mfu"),
    "peak_memory": ("training.peak_memory", "training.peak_memory_bytes", "peak_memory"),
}
_COMPONENTS = ("flops.components", "flops.by_component", "flops.parts")


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
        found = {name: _first(efficiency, places) for name, places in _PLACES.items()}
        return cls(**found, components=_components(efficiency))


def _at(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _first(efficiency: Mapping[str, Any], places: tuple[str, ...]) -> float | None:
    for place in places:
        value = _at(efficiency, place)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def _components(efficiency: Mapping[str, Any]) -> dict[str, float] | None:
    for place in _COMPONENTS:
        parts = _at(efficiency, place)
        if isinstance(parts, Mapping):
            return {str(name): float(value) for name, value in parts.items() if isinstance(value, int | float)} or None
    return None
