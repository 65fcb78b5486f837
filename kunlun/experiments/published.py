"""What the paper reports for the components that we take away, and ours turned into the same direction beside it.

The paper (arXiv 2602.10016; Meta's data, B200) mixes "when added" with "when removed". Our tables always say
*removed from full*, so every figure here keeps the direction that it was reported in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kunlun.experiments.results import VariantResult
from kunlun.experiments.statistics import Estimate

Quantity = Literal["NE", "FLOPs", "QPS"]
Direction = Literal["added", "removed"]


@dataclass(frozen=True)
class Figure:
    """A relative change in percent; of NE, positive is worse. 0 where the paper says "neutral"."""

    quantity: Quantity
    percent: float
    direction: Direction

    @property
    def title(self) -> str:
        return f"{self.quantity} when {self.direction}"


@dataclass(frozen=True)
class Published:
    """What the paper says of one component: its figures, and all of it in words."""

    words: str
    figures: tuple[Figure, ...]


PUBLISHED: dict[str, Published] = {
    "no_gdpa": Published(
        "without GDPA: NE 0.04 % worse, MFU 37 % → 34 %; the PFFN itself gains up to 6× MFU",
        (Figure("NE", 0.04, "removed"),),
    ),
    "no_hsp": Published(
        "HSP instead of PMA: NE 0.08 % better (0.03 % of it from SumKronLinear); PMA is 8.8 % faster",
        (Figure("NE", -0.08, "added"), Figure("QPS", 8.8, "removed")),
    ),
    "no_window": Published(
        "adding the window: FLOPs −29.5 %, QPS +31.1 %, NE neutral",
        (Figure("NE", 0.0, "added"), Figure("FLOPs", -29.5, "added"), Figure("QPS", 31.1, "added")),
    ),
    "no_compskip": Published(
        "adding CompSkip: FLOPs −43.1 %, QPS +35 %, NE neutral",
        (Figure("NE", 0.0, "added"), Figure("FLOPs", -43.1, "added"), Figure("QPS", 35.0, "added")),
    ),
    "no_event_personalization": Published(
        "adding event-level personalization: FLOPs −11 %, QPS +13 %",
        (Figure("FLOPs", -11.0, "added"), Figure("QPS", 13.0, "added")),
    ),
    # Ours share one device, so there is no figure to stand beside.
    "two_experts": Published("adding experts in parallel, over several devices: QPS +4 %", ()),
}
"""By the name of the ablation."""

SCALING_RATIO = 2.0
SCALING_WORDS = "scaling efficiency 2× InterFormer's; at 180 GFLOPs NE gains 0.79 % against 0.50 %; 10 to 200+ GFLOPs"
UTILISATION_WORDS = "MFU of the whole model 17 % → 37 %"

_RATIO_KEYS = {"FLOPs": "flops", "QPS": "training_qps"}


def ours(figure: Figure, variant: VariantResult) -> Estimate | None:
    """Our change in percent, in the direction of ``figure``; None where it was not measured.

    FLOPs and QPS are single numbers, without an interval. QPS is that of training.
    """
    if figure.quantity == "NE":
        removed = variant.delta_percent.get("ne")
    else:
        ratio = variant.ratio.get(_RATIO_KEYS[figure.quantity])
        removed = None if ratio is None else Estimate(100 * (ratio - 1), None, None, 1)
    return removed if removed is None or figure.direction == "removed" else added(removed)


def added(removed: Estimate) -> Estimate:
    """The change that a component brings, relative to the model without it: ``(full − without) / without``.

    ``removed`` is ``(without − full) / full``; both are in percent, and above −100 %.
    """

    def turned(percent: float) -> float:
        return 100 * (1 / (1 + percent / 100) - 1)

    # What grows one way shrinks the other: the ends change places.
    low = None if removed.high is None else turned(removed.high)
    high = None if removed.low is None else turned(removed.low)
    return Estimate(turned(removed.mean), low, high, removed.count)
