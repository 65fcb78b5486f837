"""What the charts of the report are made of: places in percent, so that a chart takes any width and its text none.

The template draws them as inline SVG. Plotly, which draws the charts of an inspection, would put 4.8 MB of script into
every report.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """From ``low`` at 0 % to ``high`` at 100 %; ``flipped`` the other way, as y goes downward in SVG."""

    low: float
    high: float
    log: bool = False
    flipped: bool = False

    def at(self, value: float) -> float:
        """The place of ``value`` in percent; outside of 0 to 100 where the axis does not reach it."""
        low, high, here = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        share = 100 * (here - low) / (high - low)
        return round(100 - share if self.flipped else share, 2)

    def inside(self, value: float) -> float:
        """The same, kept on the axis."""
        return min(100.0, max(0.0, self.at(value)))

    def values(self, wanted: int) -> list[float]:
        """About so many round values."""
        if self.log:
            return _log_values(self.low, self.high, wanted)
        found: list[float] = []
        while len(found) < 2:
            rough = (self.high - self.low) / wanted
            power = 10.0 ** math.floor(math.log10(rough))
            step = power * next(s for s in (1, 2, 5, 10) if s * power >= 0.999 * rough)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            found, wanted = [round(i * step, 12) for i in range(first, last + 1)], wanted + 1
        return found


def _log_values(low: float, high: float, wanted: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(found) >= 3:
            break
    return found[:: max(1, math.ceil(len(found) / (wanted + 2)))]


def axis(values: Sequence[float], log: bool = False, flipped: bool = False, room: float = 0.06) -> Axis:
    """An axis around ``values`` with a share of ``room`` on both sides."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log(low), math.log(high)
    span = (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - room * span, high + room * span
    return Axis(math.exp(low), math.exp(high), True, flipped) if log else Axis(low, high, False, flipped)


def decimals(values: Sequence[float]) -> int:
    """How many decimals tell the round values of an axis apart."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    return max(0, -math.floor(math.log10(step) + 1e-9))


@dataclass(frozen=True)
class Span:
    """A row of a forest plot: a mean with its interval; ``low`` None: no interval, ``middle`` None: no value."""

    name: str
    text: str
    tone: str
    middle: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Block:
    """Rows on one scale, under a heading."""

    title: str
    rows: list[Span]
    ticks: list[Tick]
    zero: float


@dataclass(frozen=True)
class Bar:
    name: str
    text: str
    length: float
    strong: bool = False


@dataclass(frozen=True)
class Bars:
    """``reference``: where a line marks the full model."""

    title: str
    rows: list[Bar]
    reference: float | None = None


@dataclass(frozen=True)
class Mark:
    """A point, with its ``title`` on hovering. ``label`` stands ``dx``, ``dy`` pixels from it, if there is room."""

    x: float
    y: float
    title: str
    label: str = ""
    dx: float = 0.0
    dy: float = 0.0
    anchor: str = "start"

    @property
    def is_far(self) -> bool:
        return math.hypot(self.dx, self.dy) > 20


@dataclass(frozen=True)
class Series:
    """``look`` names the colour and the shape; ``line``, ``band`` and ``beside`` (dashed) are paths on 0 … 100."""

    name: str
    look: str
    marks: list[Mark] = field(default_factory=list)
    line: str = ""
    band: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Plot:
    """Series over two axes. ``floor``: the place of the oracle, if it is in sight."""

    title: str
    series: list[Series]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_title: str = ""
    y_title: str = ""
    height: int = 320
    floor: Tick | None = None


def path(points: Sequence[tuple[float, float]]) -> str:
    """An open line through points."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def ribbon(x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    """A closed band between two curves."""
    back = zip(reversed(x), reversed(high), strict=True)
    return f"{path([*zip(x, low, strict=True), *back])}Z" if x else ""


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


LETTER, LINE, MARK = 6.8, 13.0, 6.0  # pixels, of 12 px text
STEPS = tuple(i / 20 for i in range(4, 20))  # of a leader, where it may touch nothing
FAR = ((14.0, -20.0), (14.0, 28.0), (30.0, -34.0), (30.0, 42.0), (46.0, -50.0), (46.0, 58.0), (60.0, -66.0))


def labelled(marks: Sequence[Mark], names: Sequence[str], width: float, height: float) -> list[Mark]:
    """The marks with those names that find room beside them on a plot of that size, in pixels; the first come first."""
    points = [(m.x * width / 100, m.y * height / 100) for m in marks]
    around = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in points]
    texts: list[Box] = []
    placed = []
    for i, (mark, name, (x, y)) in enumerate(zip(marks, names, points, strict=True)):
        for dx, dy, anchor in _places():
            box = _text_box(name, x + dx, y + dy, anchor)
            others = [*around[:i], *around[i + 1 :], *texts]
            inside = box.left >= 0 and box.right <= width and box.top >= 0 and box.bottom <= height
            found = replace(mark, label=name, dx=dx, dy=dy, anchor=anchor)
            leader = [Box(x + s * dx, y + s * dy, x + s * dx, y + s * dy) for s in STEPS] if found.is_far else []
            if inside and not any(part.meets(other) for part in (box, *leader) for other in others):
                texts.append(box)
                placed.append(found)
                break
        else:
            placed.append(mark)
    return placed


def _places() -> list[tuple[float, float, str]]:
    """Where a label may stand, best first: right, left, above, below, and further off, where a line leads to it."""
    near = [(9, 4, "start"), (-9, 4, "end"), (0, -9, "middle"), (0, 18, "middle")]
    slant = [(8, -6, "start"), (8, 15, "start"), (-8, -6, "end"), (-8, 15, "end")]
    far = [(side * dx, dy, anchor) for dx, dy in FAR for side, anchor in ((1, "start"), (-1, "end"))]
    return [*near, *slant, *far]


def _text_box(text: str, x: float, y: float, anchor: str) -> Box:
    width = LETTER * len(text)
    left = x if anchor == "start" else x - width if anchor == "end" else x - width / 2
    return Box(left, y - 10, left + width, y - 10 + LINE)
