"""The shipped worlds, with the constants that ``python -m data.synthetic NAME`` computed for them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

from data.synthetic_config import SPLITS, Calibration, Stream, Strengths, SyntheticConfig

_DELAYED = Stream((0, 1, 2, 3, 4, 8), noise=0.0625)

# What is learnt last, motif, crosses and memory, is strong, so that two cores get to it in minutes.
_SMALL = SyntheticConfig(
    strengths=Strengths(recency=1.0, motif=1.2, long_range=0.7, context=0.7, event_types=0.7, crosses=1.2, memory=0.6),
    user_buckets=4_096,
    items=4_096,
    conversion=_DELAYED,
    delayed_conversions=True,
    train_rows=3 << 16,
    valid_rows=1 << 15,
    test_rows=1 << 15,
)

_LARGE = replace(
    _SMALL,
    strengths=Strengths(recency=0.8, motif=0.6, long_range=0.6, context=0.6, event_types=0.6, crosses=0.5, memory=0.3),
    max_events=1_000,
    users=100_000_000,
    user_buckets=1_000_000,
    items=10_240_000,
    categories=1_024,
    groups=16,
    horizon_days=720,
    request_days=60,
    click=Stream((0, 1, 1, 1, 1, 2, 2, 3, 4, 8), noise=0.125),
    impression=Stream((0, 1, 1, 1, 2, 2, 3, 4), noise=0.75),
    train_rows=1_000_000_000,
    valid_rows=1 << 20,
    test_rows=1 << 20,
)

PRESETS: dict[str, SyntheticConfig] = {
    "tiny": SyntheticConfig(
        strengths=Strengths(
            recency=0.7, motif=0.4, long_range=0.5, context=0.4, event_types=0.5, crosses=0.5, memory=0.2
        ),
    ),
    "small": _SMALL,
    "small_5pct": replace(_SMALL, ctr=0.05, conversion_rate=0.01),
    "large": _LARGE,
    "massive": replace(
        _LARGE,
        users=1_000_000_000,
        user_buckets=1_000_000_000,
        items=1_000_000_000,
        categories=4_000,
        groups=32,
        train_rows=70_000_000_000,
        valid_rows=1 << 24,
        test_rows=1 << 24,
    ),
}

CALIBRATIONS: dict[str, Calibration] = {
    "tiny": Calibration(
        mean=(0.299734, 0.078418, 0.100688, 0.000515, 0.152429, -0.003942, 0.030164),
        std=(0.444106, 0.237329, 0.249534, 0.359525, 0.50729, 2.18879, 1.431119),
        bias=(-1.453107,),
        mean_lengths=(15.501945, 5.352378, 17.93494),
    ),
    "small": Calibration(
        mean=(0.299734, 0.078418, 0.100688, 0.000515, 0.093511, -0.00409, 0.007703),
        std=(0.444106, 0.237329, 0.249534, 0.359525, 0.45203, 2.189821, 1.416895),
        bias=(-2.024674,),
        mean_lengths=(15.501945, 3.739557, 17.93494),
    ),
    "small_5pct": Calibration(
        mean=(0.299734, 0.078418, 0.100688, 0.000515, 0.093511, -0.00409, 0.007703),
        std=(0.444106, 0.237329, 0.249534, 0.359525, 0.45203, 2.189821, 1.416895),
        bias=(-6.441175,),
        mean_lengths=(15.501945, 3.739557, 17.93494),
    ),
    "large": Calibration(
        mean=(0.356463, 0.131978, 0.185927, -0.00023, 0.235415, 0.001719, -0.004569),
        std=(0.497175, 0.258026, 0.268262, 0.418492, 0.536737, 2.184309, 1.414626),
        bias=(-1.780033,),
        mean_lengths=(424.725636, 103.297079, 433.781985),
    ),
    "massive": Calibration(
        mean=(0.346568, 0.112217, 0.130376, -0.000376, 0.196823, -0.001403, -0.00357),
        std=(0.49549, 0.237556, 0.241038, 0.413927, 0.50569, 2.181608, 1.413709),
        bias=(-1.750213,),
        mean_lengths=(424.019496, 103.124458, 433.476459),
    ),
}


def shipped_calibration(config: SyntheticConfig) -> Calibration | None:
    """The constants of the preset that is this world but for the sizes of its splits; None where there is none."""
    for name, preset in PRESETS.items():
        train, valid, test = (config.rows(split) for split in SPLITS)
        if replace(preset, train_rows=train, valid_rows=valid, test_rows=test) == config:
            return CALIBRATIONS.get(name)
    return None


def altered(
    preset: SyntheticConfig,
    *,
    strengths: Mapping[str, float] | None = None,
    ctr: float | None = None,
    label_noise: float | None = None,
    tasks: tuple[str, ...] | None = None,
    conversion_rate: float | None = None,
    seed: int | None = None,
    train_rows: int | None = None,
) -> SyntheticConfig:
    """``preset`` with what is not None put in its place; ``strengths`` names the parts that change.

    ValueError names the limits of a value that is impossible.
    """
    parts = preset.strengths.by_part()
    for part in strengths or ():
        if part not in parts:
            near = difflib.get_close_matches(part, parts, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"synthetic world: strengths has no part {part!r}{hint} (known: {', '.join(parts)})")
    return replace(
        preset,
        strengths=replace(preset.strengths, **(strengths or {})),
        ctr=preset.ctr if ctr is None else ctr,
        label_noise=preset.label_noise if label_noise is None else label_noise,
        tasks=preset.tasks if tasks is None else tasks,
        conversion_rate=preset.conversion_rate if conversion_rate is None else conversion_rate,
        seed=preset.seed if seed is None else seed,
        train_rows=preset.train_rows if train_rows is None else train_rows,
    )
