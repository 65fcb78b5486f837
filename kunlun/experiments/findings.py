"""What the numbers say, as sentences made from them: what was compared on what, and what can and cannot be told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kunlun.experiments import numbers as n
from kunlun.experiments.matrix_tables import ordered
from kunlun.experiments.published import SCALING_RATIO
from kunlun.experiments.results import Family, MatrixResult, ScalingResult, VariantResult
from kunlun.experiments.statistics import Estimate

TELLING = 0.02  # a cost within 2 % of full's is not worth a sentence


@dataclass(frozen=True)
class Item:
    """What is said of a variant; ``summary`` is what the variant is."""

    name: str
    said: str
    summary: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.said}. {self.summary}".rstrip()


@dataclass(frozen=True)
class Group:
    """Sentences under one heading; ``tone`` is worse, better, unclear, cost or missing."""

    tone: str
    title: str
    items: list[Item]


@dataclass(frozen=True)
class Findings:
    """``question``: what was compared, on what. ``answer``: the shortest true answer."""

    title: str
    question: str
    answer: str
    groups: list[Group] = field(default_factory=list)
    caution: str = ""


def findings(result: MatrixResult | ScalingResult) -> Findings:
    return _of_matrix(result) if isinstance(result, MatrixResult) else _of_scaling(result)


def _of_matrix(result: MatrixResult) -> Findings:
    others = [v for v in ordered(result) if v.name != result.reference]
    worse, better, unclear, single, missing = _sorted(others)
    groups = [
        Group("worse", "Worse than full", [_told(v, "worsens") for v in worse]),
        Group("better", "Better than full", [_told(v, "improves") for v in better]),
        Group("unclear", "Cannot be told apart from full", [_untold(v) for v in unclear]),
        Group("unclear", "One seed, so no interval", [_untold(v) for v in single]),
        Group("cost", "What replacing a component costs", [*_costs(others, ("no",))]),
        Group(
            "cost",
            f"Whether what saves compute costs no more than {n.percent(result.margin, 1, sign=False)} of NE",
            [*_savings(others, result.margin)],
        ),
        Group("missing", "No result", [Item(v.name, f"has none: {_why(v)}") for v in missing]),
    ]
    reference = next((v for v in result.variants if v.name == result.reference), None)
    answer = _answer(len(others), [(len(worse), "worse"), (len(better), "better")], len(unclear), len(single))
    if reference is None or not reference.done():
        answer = f"The full model ({result.reference}) has no result, so nothing can be compared with it."
    elif missing:
        answer += f" {_count(len(missing), 'has', 'have')} no result."
    return Findings(
        title=f"{result.name}: ablation of {result.reference}",
        question=_question(result, len(others)),
        answer=answer,
        groups=[group for group in groups if group.items],
        caution=_caution(len(worse) + len(better) + len(unclear)),
    )


def _sorted(others: Sequence[VariantResult]) -> tuple[list[VariantResult], ...]:
    """Worse (most first), better (most first), unclear, without an interval, without a value."""
    known = [v for v in others if "ne" in v.delta_percent]
    clear = sorted((v for v in known if _delta(v).is_clear), key=lambda v: -abs(_delta(v).mean))
    worse, better = ([v for v in clear if (_delta(v).mean > 0) == up] for up in (True, False))
    unclear = [v for v in known if not _delta(v).is_clear and _delta(v).low is not None]
    single = [v for v in known if _delta(v).low is None]
    return worse, better, unclear, single, [v for v in others if "ne" not in v.delta_percent]


def _delta(variant: VariantResult) -> Estimate:
    return variant.delta_percent["ne"]


def _told(variant: VariantResult, verb: str) -> Item:
    delta = _delta(variant)
    low, high = sorted(abs(edge) for edge in (delta.low or 0.0, delta.high or 0.0))
    digits = n.decimals(delta)
    size, ends = n.percent(abs(delta.mean), digits, sign=False), f"{n.fixed(low, digits)} to {n.fixed(high, digits)}"
    return Item(variant.name, f"{verb} NE by {size} (interval {ends})", variant.summary)


def _untold(variant: VariantResult) -> Item:
    change = n.change(_delta(variant))
    said = "has NE identical in every seed" if change == n.IDENTICAL else f"changes NE by {change}"
    return Item(variant.name, said, variant.summary)


def _answer(count: int, clear: list[tuple[int, str]], unclear: int, single: int) -> str:
    if not count:
        return "There is no variant to compare."
    parts = [f"{number or 'none'} {'are' if number > 1 else 'is'} {word}" for number, word in clear]
    parts.append(f"{unclear} cannot be told apart from it")
    if single:
        parts.append(f"{single} {'rests' if single == 1 else 'rest'} on one seed")
    return f"Of {_count(count, 'variant', 'variants')} beside the full model, {', '.join(parts[:-1])} and {parts[-1]}."


def _question(result: MatrixResult, others: int) -> str:
    planned = max((len(v.cells) for v in result.variants), default=0)
    return (
        f"{result.reference} and {_count(others, 'variant', 'variants')}, {_count(planned, 'seed', 'seeds')} each, on "
        f"{_data(result.data)}. NE of the {result.split} split."
    )


def _data(data: dict[str, object]) -> str:
    """``taobao (20,000 training rows, 4.9 % clicks)``."""
    rows, rate = data.get("rows"), data.get("train_rate")
    facts = [f"{rows['train']:,} training rows"] if isinstance(rows, dict) and "train" in rows else []
    rate = next(iter(rate.values()), None) if isinstance(rate, dict) else rate  # of the first task
    facts += [f"{n.percent(100 * rate, 1, sign=False)} positive"] if isinstance(rate, float) else []
    name = str(data.get("name", "unnamed data"))
    return f"{name} ({', '.join(facts)})" if facts else name


def _caution(comparisons: int) -> str:
    """Several intervals at once; and what not telling apart means."""
    if not comparisons:
        return ""
    by_luck = f"about {n.significant(0.05 * comparisons, 2)} would leave 0 out by luck alone"
    told = "Not to be told apart is not the same as equal: the interval says how large a difference it leaves open."
    if comparisons < 5:
        return told
    return f"Of {comparisons} intervals at 95 %, {by_luck} if nothing made a difference. {told}"


def _costs(variants: Sequence[VariantResult], families: tuple[Family, ...]) -> Iterator[Item]:
    for variant in (v for v in variants if v.family in families):
        parts = [
            f"{title} {n.percent(100 * (variant.ratio[key] - 1), 1)}"
            for key, title in (("flops", "FLOPs"), ("training_qps", "training QPS"), ("peak_memory", "peak memory"))
            if key in variant.ratio and abs(variant.ratio[key] - 1) > TELLING
        ]
        if parts:
            yield Item(variant.name, f"changes {', '.join(parts)}")


def _savings(variants: Sequence[VariantResult], margin: float) -> Iterator[Item]:
    """Of each replacement that takes more compute: whether full, which saves it, can be said to lose no more NE."""
    for variant in variants:
        delta, flops = variant.delta_percent.get("ne"), variant.ratio.get("flops", 1.0)
        if variant.family == "no" and flops > 1 + TELLING and delta is not None and delta.low is not None:
            most = max(0.0, -delta.low)
            said = f"may be better than full by up to {n.percent(most, n.decimals(delta), sign=False)}: "
            yield Item(variant.name, said + ("full passes" if most <= margin else "not shown"))


def _why(variant: VariantResult) -> str:
    reason = next((cell.reason for cell in variant.cells if cell.reason), None)
    if reason:
        return reason
    return "its runs have no seed in common with full's" if variant.done() else "not run"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _of_scaling(result: ScalingResult) -> Findings:
    sizes = max((len(ladder.points) for ladder in result.ladders), default=0)
    flops = [point.flops for ladder in result.ladders for point in ladder.points]
    question = f"{', '.join(ladder.model for ladder in result.ladders)} at up to {_count(sizes, 'size', 'sizes')}"
    if flops:
        question += f", {n.scaled(min(flops))}FLOPs to {n.scaled(max(flops))}FLOPs a sample"
    question += f", on {_data(result.data)}. NE of the {result.split} split."
    clear: list[Item] = []
    unclear: list[Item] = []
    for model, ratio in result.ratios.items():
        if model == result.reference:
            continue
        sentence, is_clear = _ratio(model, result.reference, ratio)
        (clear if is_clear else unclear).append(sentence)
    paper = f"The paper has Kunlun at {n.fixed(SCALING_RATIO, 0)}× InterFormer's scaling efficiency."
    groups = [Group("cost", "Also told apart", clear[1:]), Group("unclear", "Cannot be told apart", unclear)]
    short = [Item(ladder.model, "has too few sizes that finished") for ladder in result.ladders if ladder.log is None]
    groups.append(Group("missing", "No fit", short))
    told = str(clear[0]) if clear else "No model's scaling can be told apart from the reference's."
    if not result.ratios:
        told = f"There is no ratio: {_why_no_ratio(result)}."
    return Findings(
        title=f"{result.name}: scaling law",
        question=question,
        answer=f"{told} {paper}",
        groups=[group for group in groups if group.items],
        caution="The ratio holds for the sizes and the amount of data that were trained, and not beyond them.",
    )


def _why_no_ratio(result: ScalingResult) -> str:
    fits = {ladder.model: ladder.log for ladder in result.ladders}
    fit = fits.get(result.reference)
    if fit is None:
        return f"{result.reference} has too few sizes that finished"
    if not fit.coefficients["eta"].mean > 0:
        return f"{result.reference} does not improve with compute"
    return "no other model has a fit"


def _ratio(model: str, reference: str, ratio: Estimate) -> tuple[Item, bool]:
    """The sentence, and whether the ratio's interval leaves 1 out."""
    said = f"gains {n.spread(ratio, 2)} times as much NE from compute as {reference}"
    if ratio.mean <= 0:
        said = f"gains nothing from compute ({n.spread(ratio, 2)} times {reference}'s slope)"
    if ratio.low is None:
        return Item(model, f"{said}, an interval without bounds"), False
    if ratio.high is None:
        why = f"no upper end, for {reference}'s own gain cannot be told from none"
        return Item(model, f"{said}; {why}"), ratio.low > 1
    return Item(model, said), ratio.low > 1 or ratio.high < 1
