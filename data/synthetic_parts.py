"""The parts of the synthetic click probability, each a number per sample that depends only on what the sample shows.

Sums over events are sums of int64, hence exact in any order and on any device; what is left is a few additions,
products and quotients of float64. ``docs/synthetic.md`` has the formulas.

Legend: B samples · N packed events · g(c) = c mod G the group of category c · types in the order click, conversion,
impression.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from data.counter import bits, draw, make_key, python_draw
from data.synthetic_config import TYPES, SyntheticConfig
from data.synthetic_streams import DEVICES, HOURS, PLACEMENTS, SEGMENTS, Impressions

RECENCY_SHIFTS = (12, 16, 20)  # half-lives of 2^12, 2^16 and 2^20 s: 1.1 hours, 18 hours, 12 days
PRESENT_SHIFT = 18  # half-life of 2^18 s = 3 days
DEVICE_SIGNS = (1, -1, -1, 1)  # half of the requests each
PRICES = 256
# Each is a sum of FACTORS products of hidden signs: for pairs, a dot product of hidden vectors. With one factor, gates
# and an MLP learn the pairs as well as a factorization machine does.
CROSSES = (
    ("hour", "placement"),
    ("placement", "segment"),
    ("segment", "category"),
    ("category", "hour"),
    ("device", "placement", "category"),
    ("hour", "device", "placement", "segment"),
)
FACTORS = 4
_UNIT = 1 << 16  # 1 in fixed point


@dataclass(frozen=True)
class _Past:
    """Events of one type: sample (N,), category (N,), same (N,) bool: whether it is the candidate's, age in seconds
    (N,), and how many each sample has, count (B,)."""

    sample: Tensor
    category: Tensor
    same: Tensor
    age: Tensor
    count: Tensor

    def number(self, chosen: Tensor) -> Tensor:
        """(B,) float64: how many of each sample's events are ``chosen`` (N,) bool; exact in any order."""
        return torch.zeros_like(self.count).index_add_(0, self.sample, chosen.long()).double()

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Sample and age of the events of the candidate's category."""
        index = self.same.nonzero().view(-1)
        return self.sample.index_select(0, index), self.age.index_select(0, index)

    def decayed(self, shift: int) -> Tensor:
        """(B,) float64: events of the candidate's category, each worth 2^(-age / 2^shift), linear between powers."""
        sample, age = self.own
        halvings = (age >> shift).clamp(max=17)
        weight = _UNIT >> halvings
        weight -= ((weight >> 1) * bits(age, 0, shift)) >> shift
        total = torch.zeros_like(self.count).index_add_(0, sample, weight)
        return total.double() / _UNIT


def _saturated(x: Tensor) -> Tensor:
    """x / (1 + |x|): the first event matters most."""
    return x / (1.0 + x.abs())


class Parts:
    """Raw (not yet standardised) parts of a world."""

    def __init__(self, config: SyntheticConfig) -> None:
        seed = config.seed
        self.groups = config.groups
        self.user_buckets = config.user_buckets
        self._item_key = make_key(seed, 11)
        self._user_key = make_key(seed, 12)
        self._bucket_key = make_key(seed, 13)
        cards = {
            "hour": HOURS,
            "device": DEVICES,
            "placement": PLACEMENTS,
            "segment": SEGMENTS,
            "category": config.categories,
        }
        key = make_key(seed, 14)
        self._price_signs = torch.tensor(_balanced_signs(python_draw(key, 0), SEGMENTS))
        # Per cross: field → (values, FACTORS)
        self._cross_signs = [
            {name: _sign_table(python_draw(key, 8 * number + place), cards[name]) for place, name in enumerate(fields)}
            for number, fields in enumerate(CROSSES, 1)
        ]

    def user_bucket(self, user: Tensor) -> Tensor:
        """(B,) the shown user id in [0, user_buckets)."""
        return bits(draw(self._bucket_key, user), 8, 48) % self.user_buckets

    def price(self, item: Tensor) -> Tensor:
        """(B,) the price level of each item in [0, PRICES)."""
        return bits(draw(self._item_key, item), 48, 8)

    def __call__(self, sample: Impressions) -> Tensor:
        """(B, len(PARTS)) float64, in the order of ``PARTS``."""
        click, conversion, impression = self._pasts(sample)
        parts = (
            self._recency(click),
            self._motif(click),
            self._long_range(click),
            self._context(click, sample),
            self._event_types(conversion, impression),
            self._crosses(sample),
            self._memory(sample),
        )
        return torch.stack(parts, dim=1)

    def _pasts(self, sample: Impressions) -> list[_Past]:
        """The events of each type as seen from their candidates."""
        n = sample.user.numel()
        events = sample.events
        edges = [int(events.offsets[number * n]) for number in range(len(TYPES) + 1)]
        counts = events.offsets.diff().view(len(TYPES), n)
        pasts = []
        for number in range(len(TYPES)):
            piece = slice(edges[number], edges[number + 1])
            owner = events.segment[piece] - number * n
            pasts.append(
                _Past(
                    sample=owner,
                    category=events.category[piece],
                    same=events.category[piece] == sample.category.index_select(0, owner),
                    age=sample.request_time.index_select(0, owner) - events.time[piece],
                    count=counts[number],
                )
            )
        return pasts

    def _recency(self, click: _Past) -> Tensor:
        """Clicks in the candidate's category: just now means enough of it, today still wanted, lately a little."""
        now, today, lately = (_saturated(click.decayed(shift)) for shift in RECENCY_SHIFTS)
        return 2.0 * (today - now) + lately

    def _motif(self, click: _Past) -> Tensor:
        """Clicks in the candidate's category: what was clicked next tells whether it was liked."""
        followed = click.same[:-1] & (click.sample[:-1] == click.sample[1:])
        # Half of the categories of each group, so that a click hardly tells of which kind its neighbour is.
        odd = (click.category[1:] // self.groups & 1).bool()
        liked, left = (torch.zeros_like(click.same) for _ in range(2))
        liked[:-1], left[:-1] = followed & odd, followed & ~odd
        return _saturated(click.number(liked)) - 0.5 * _saturated(click.number(left))

    def _long_range(self, click: _Past) -> Tensor:
        """Clicks in the candidate's category: a taste of long ago speaks for it, one of these days is sated."""
        present = click.decayed(PRESENT_SHIFT)
        return _saturated(click.number(click.same) - present) - _saturated(present)

    def _context(self, click: _Past, sample: Impressions) -> Tensor:
        """Clicks in the candidate's category; the request's device decides whether they count for or against it."""
        sign = torch.tensor(DEVICE_SIGNS, device=sample.device.device).index_select(0, sample.device)
        return sign * _saturated(click.decayed(RECENCY_SHIFTS[-1]))

    def _event_types(self, conversion: _Past, impression: _Past) -> Tensor:
        """Conversions in the candidate's category speak for it; impressions, mostly noise, tire."""
        bought = _saturated(conversion.number(conversion.same))
        return 2.0 * bought - _saturated(impression.decayed(PRESENT_SHIFT))

    def _crosses(self, sample: Impressions) -> Tensor:
        """Hidden signs of two to four fields, multiplied, and of a dense feature and a field: no field tells alone."""
        device = sample.user.device
        values = {
            "hour": sample.hour,
            "device": sample.device,
            "placement": sample.placement,
            "segment": sample.segment,
            "category": sample.category,
        }
        total = torch.zeros_like(sample.user, dtype=torch.float64)
        for tables in self._cross_signs:
            signs = [table.to(device).index_select(0, values[name]) for name, table in tables.items()]
            product = torch.stack(signs).prod(0).sum(1)  # exact: small integers
            total = total + 2.0 ** (1 - len(tables)) * product
        own = self._price_signs.to(device).index_select(0, sample.segment)
        return total + 0.5 * standardised(self.price(sample.item), PRICES) * own

    def _memory(self, sample: Impressions) -> Tensor:
        """A fixed value of the candidate's item plus one of the shown user id: nothing but memory finds them."""
        item = _bell(draw(self._item_key, sample.item))
        return item + _bell(draw(self._user_key, self.user_bucket(sample.user)))


def standardised(level: Tensor, n: int) -> Tensor:
    """(B,) float64: a uniform integer in [0, n) to mean 0 and variance 1."""
    return (level.double() - (n - 1) / 2) * (12.0 / (n * n - 1)) ** 0.5


def _bell(word: Tensor) -> Tensor:
    """(B,) float64, nearly normal with variance 1: the sum of four bytes of each word."""
    total = bits(word, 0, 8) + bits(word, 8, 8) + bits(word, 16, 8) + bits(word, 24, 8)
    return (total.double() - 510.0) / (4 * (256**2 - 1) / 12) ** 0.5


def _balanced_signs(key: int, n: int) -> list[int]:
    """n signs in random order, as many +1 as -1 (one more +1 where n is odd)."""
    signs = [-1] * n
    for value in sorted(range(n), key=lambda value: python_draw(key, value))[: (n + 1) // 2]:
        signs[value] = 1
    return signs


def _sign_table(key: int, n: int) -> Tensor:
    """(n, FACTORS) int64 of signs, each column balanced."""
    return torch.tensor([_balanced_signs(python_draw(key, factor), n) for factor in range(FACTORS)]).T.contiguous()
