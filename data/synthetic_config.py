"""What a synthetic world is made of: its sizes, its streams of events, the strengths of its parts; the presets."""

from __future__ import annotations

from dataclasses import dataclass, field

TYPES = ("click", "conversion", "impression")
PARTS = ("recency", "motif", "long_range", "context", "event_types", "crosses", "memory")
SPLITS = ("train", "valid", "test")
MAX_ROWS = 1 << 60


def _check(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    """ValueError that names the limits unless low ≤ value ≤ high (never so for nan)."""
    if not low <= value <= high:
        raise ValueError(f"synthetic world: {name} must lie in [{low:,}, {high:,}]{unit}, got {value!r}")


@dataclass(frozen=True)
class Strengths:
    """How much each part moves the log-odds, as a standard deviation in [0, 10]; 0 = it is without effect."""

    recency: float = 0.0
    motif: float = 0.0
    long_range: float = 0.0
    context: float = 0.0
    event_types: float = 0.0
    crosses: float = 0.0
    memory: float = 0.0

    def __post_init__(self) -> None:
        for name, strength in self.by_part().items():
            _check(f"strengths.{name}", strength, 0, 10)

    def by_part(self) -> dict[str, float]:
        """Part → strength, in the order of ``PARTS``."""
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True)
class Stream:
    """How often events of one type happen and how much of them is noise.

    periods: 1 to 64 numbers of days between two visits, one drawn per user; 0 = a user without such events; for delayed
    conversions, numbers of click visits of which one converts · noise: share of events whose item says nothing of the
    user's interests, in [0, 1], kept in steps of 1/256.
    """

    periods: tuple[int, ...]
    noise: float

    def __post_init__(self) -> None:
        _check("the number of a stream's periods", len(self.periods), 1, 64)
        for period in self.periods:
            _check("a stream's period", period, 0, 10_000, " days")
        _check("a stream's noise", self.noise, 0, 1)


@dataclass(frozen=True)
class SyntheticConfig:
    """A world; equal configurations are the same world on any machine.

    strengths, conversion_strengths: of the parts of the click, and of the conversion of a click ·
    tasks: ``("click",)`` or ``("click", "conversion")`` · ctr: mean click probability · conversion_rate: mean
    probability of click and conversion · label_noise: share of the click labels drawn at the rate ``ctr``, whatever the
    sample · max_events: newest events per type that a sample shows; its probability depends on no others ·
    users, items: id spaces, without tables · user_buckets: ids that the user field shows, hashed · categories: item
    modulo categories is its category · groups: category modulo groups is its group · interests: categories that a user
    likes at one time, each for interest_days · delayed_conversions: a conversion follows a click visit of its user by
    minutes to days and is an event of the moment it becomes known, else conversions are a stream of their own ·
    horizon_days: users join from day 0 on, requests come in the last request_days, or as near as the user's clicks do ·
    *_rows: sizes of the splits, which a change of one does not move.
    """

    strengths: Strengths
    conversion_strengths: Strengths = field(default_factory=lambda: Strengths(long_range=0.5, event_types=1.0))
    seed: int = 0
    tasks: tuple[str, ...] = ("click",)
    ctr: float = 0.25
    conversion_rate: float = 0.05
    label_noise: float = 0.0
    max_events: int = 48
    users: int = 100_000
    user_buckets: int = 512
    items: int = 1_024
    categories: int = 32
    groups: int = 8
    interests: int = 3
    interest_days: int = 45
    horizon_days: int = 60
    request_days: int = 30
    click: Stream = Stream((0, 1, 2, 3, 4, 6, 8, 12, 16, 32), noise=0.125)
    conversion: Stream = Stream((0, 0, 4, 8, 16, 32), noise=0.0625)
    impression: Stream = Stream((0, 1, 2, 3, 4, 6, 8, 16), noise=0.75)
    delayed_conversions: bool = False
    train_rows: int = 65_536
    valid_rows: int = 8_192
    test_rows: int = 8_192

    def __post_init__(self) -> None:
        if self.tasks not in (("click",), ("click", "conversion")):
            raise ValueError(
                f"synthetic world: tasks must be ('click',) or ('click', 'conversion'), got {self.tasks!r}"
            )
        _check("world_seed (the seed of the configuration)", self.seed, 0, 2**63 - 1)
        _check("ctr", self.ctr, 0.001, 0.999)
        if "conversion" in self.tasks:
            _check("conversion_rate", self.conversion_rate, 0.01 * self.ctr, 0.99 * self.ctr, " (1 % to 99 % of ctr)")
        _check("label_noise", self.label_noise, 0, 1)
        _check("max_events", self.max_events, 1, 100_000)
        _check("users", self.users, 1, 10**9)
        _check("user_buckets", self.user_buckets, 1, 10**9)
        _check("categories", self.categories, 8, 4_096)
        _check("groups", self.groups, 8, 64)
        if self.groups & (self.groups - 1) or self.categories % self.groups:
            raise ValueError(
                "synthetic world: groups must be 8, 16, 32 or 64 and divide categories, "
                f"got groups {self.groups} and categories {self.categories}"
            )
        _check("items", self.items, self.categories, 10**9)
        if self.items % self.categories:
            raise ValueError(
                f"synthetic world: items must be a multiple of categories ({self.categories}), got {self.items}"
            )
        _check("interests", self.interests, 1, 64)
        _check("interest_days", self.interest_days, self.interests, 10_000)
        _check("horizon_days", self.horizon_days, 2, 10_000)
        _check("request_days", self.request_days, 1, self.horizon_days - 1, " (less than horizon_days)")
        for split in SPLITS:
            _check(f"{split}_rows", self.rows(split), 1, MAX_ROWS)

    def rows(self, split: str) -> int:
        """The number of rows of ``train``, ``valid`` or ``test``."""
        if split not in SPLITS:
            raise ValueError(f"synthetic world: no split {split!r}; there are {', '.join(SPLITS)}")
        return getattr(self, f"{split}_rows")

    def streams(self) -> tuple[Stream, ...]:
        """The streams in the order of ``TYPES``."""
        return tuple(getattr(self, name) for name in TYPES)


@dataclass(frozen=True)
class Calibration:
    """What can only be known by looking at many samples of a world; see ``data.synthetic.calibrate``.

    mean, std: of each raw part (order of ``PARTS``) · bias: of the log-odds of each task in use ·
    mean_lengths: events shown per type (order of ``TYPES``).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bias: tuple[float, ...]
    mean_lengths: tuple[float, ...]
