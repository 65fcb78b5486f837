"""The parts of the synthetic click probability, each a number per sample that depends only on what the sample shows.

Sums over events are sums of int64, hence exact in any order and on any device; what is left is a few additions,
products and quotients of float64. ``docs/synthetic.md`` has the formulas.

Legend: B samples · N packed events · g(c) = c mod G the group of category c · types in the order click, conversion,
impression.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.counter import bits, draw, make_key, python_draw
from data.synthetic_config import TYPES
from data.synthetic_streams import DEVICES, HOURS, PLACEMENTS, SEGMENTS, Impressions

RECENCY_SHIFTS = (12, 16, 20)  # half-lives of 2^12, 2^16 and 2^20 s: 1.1 hours, 18 hours, 12 days
FATIGUE_SHIFT = 18  # half-life of 2^18 s = 3 days
MOTIF_SECONDS = 3600
PRICES = 256
_UNIT = 1 << 16  # 1 in fixed point


@dataclass(frozen=True)
class _Past:
    """Events of one type: sample (N,), category distance to the candidate's group (N,), same category (N,) bool,
    age in seconds (N,), and how many each sample has, count (B,)."""

    sample: Tensor
    group: Tensor
    distance: Tensor
    same: Tensor
    age: Tensor
    count: Tensor

    def total(self, values: Tensor) -> Tensor:
        """(B,) int64: the sum of ``values`` (N,) over each sample's events; exact, so the order does not matter."""
        return torch.zeros_like(self.count).index_add_(0, self.sample, values.long())

    def decayed(self, shift: int) -> Tensor:
        """(B,) float64: events of the candidate's category, each worth 2^(-age / 2^shift), linear between powers."""
        index = self.same.nonzero().view(-1)
        age = self.age.index_select(0, index)
        halvings = (age >> shift).clamp(max=17)
        weight = _UNIT >> halvings
        weight -= ((weight >> 1) * bits(age, 0, shift)) >> shift
        total = torch.zeros_like(self.count).index_add_(0, self.sample.index_select(0, index), weight)
        return total.double() / _UNIT


def _saturated(x: Tensor) -> Tensor:
    """x / (1 + |x|): the first event matters most."""
    return x / (1.0 + x.abs())


class Parts:
    """Raw (not yet standardised) parts of a world with ``groups`` category groups and ``user_buckets`` user ids."""

    def __init__(self, seed: int, groups: int, user_buckets: int) -> None:
        self.groups = groups
        self.user_buckets = user_buckets
        self._item_key = make_key(seed, 11)
        self._user_key = make_key(seed, 12)
        self._bucket_key = make_key(seed, 13)
        cards = {"hour": HOURS, "device": DEVICES, "placement": PLACEMENTS, "segment": SEGMENTS, "group": groups}
        self._signs = {
            (name, use): torch.tensor(_balanced_signs(make_key(seed, 100 + 10 * number + use), card))
            for number, (name, card) in enumerate(cards.items())
            for use in range(4)
        }
        # [device, candidate's group, event's group]: the parity of the bits that device + 1 and g ⊕ g' share.
        self._codes = torch.tensor(
            [
                [
                    [_parity_sign((device + 1) & (own ^ other)) * (own != other) for other in range(groups)]
                    for own in range(groups)
                ]
                for device in range(DEVICES)
            ]
        )

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
            self._long_range((click, conversion, impression)),
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
            category = events.category[piece]
            candidate = sample.category.index_select(0, owner)
            group = category & (self.groups - 1)
            pasts.append(
                _Past(
                    sample=owner,
                    group=group,
                    distance=(group - candidate) & (self.groups - 1),
                    same=category == candidate,
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
        """Neighbouring clicks within an hour: a step to the next group speaks for any candidate, one back against."""
        step = (click.group[1:] - click.group[:-1]) & (self.groups - 1)
        near = (click.sample[:-1] == click.sample[1:]) & (click.age[:-1] - click.age[1:] <= MOTIF_SECONDS)
        sign = (step == 1).long() - (step == self.groups - 1).long()
        net = torch.zeros_like(click.count).index_add_(0, click.sample[1:], sign * near)
        return net.double() / (click.count + 4).double()

    def _long_range(self, pasts: tuple[_Past, ...]) -> Tensor:
        """The share of all events, of any age and type, that lie in the candidate's group."""
        inside = torch.stack([past.total(past.distance == 0) for past in pasts]).sum(0)
        return inside.double() / (torch.stack([past.count for past in pasts]).sum(0) + 4).double()

    def _context(self, click: _Past, sample: Impressions) -> Tensor:
        """Clicks outside the candidate's group; the request's device decides which of them count for, which against."""
        # One look-up: the row of the table is (device, group of the candidate), its column the group of the event.
        context = sample.device * self.groups + (sample.category & (self.groups - 1))
        cell = context.index_select(0, click.sample) * self.groups + click.group
        signs = self._codes.to(cell.device).view(-1).index_select(0, cell)
        return click.total(signs).double() / (click.count + 4).double()

    def _event_types(self, conversion: _Past, impression: _Past) -> Tensor:
        """Conversions in the candidate's group speak for it; impressions of its category, mostly noise, tire."""
        bought = _saturated(conversion.total(conversion.distance == 0).double())
        return 2.0 * bought - _saturated(impression.decayed(FATIGUE_SHIFT))

    def _crosses(self, sample: Impressions) -> Tensor:
        """Products of hidden signs of 2, 3 and 4 fields, and of a dense feature with a field: no field tells alone."""
        values = {
            "hour": sample.hour,
            "device": sample.device,
            "placement": sample.placement,
            "segment": sample.segment,
            "group": sample.category & (self.groups - 1),
        }

        def cross(use: int, *names: str) -> Tensor:
            product = torch.ones_like(sample.user)
            for name in names:
                product = product * self._signs[name, use].to(product.device)[values[name]]
            return product.double()

        price = standardised(self.price(sample.item), PRICES)
        return (
            cross(0, "device", "segment")
            + cross(0, "placement", "group")
            + price * cross(1, "segment")
            + cross(1, "device", "placement", "group")
            + 0.5 * cross(2, "hour", "device", "placement", "segment")
        )

    def _memory(self, sample: Impressions) -> Tensor:
        """A fixed value of the candidate's item plus one of the shown user id: nothing but memory finds them."""
        item = _bell(draw(self._item_key, sample.item))
        return item + _bell(draw(self._user_key, self.user_bucket(sample.user)))


def standardised(level: Tensor, n: int) -> Tensor:
    """(B,) float64: a uniform integer in [0, n) to mean 0 and variance 1."""
    return (level.double() - (n - 1) / 2) * (12.0 / (n * n - 1)) ** 0.5


def _parity_sign(number: int) -> int:
    """-1 for an odd number of one bits, else +1."""
    return 1 - 2 * (number.bit_count() & 1)


def _bell(word: Tensor) -> Tensor:
    """(B,) float64, nearly normal with variance 1: the sum of four bytes of each word."""
    total = bits(word, 0, 8) + bits(word, 8, 8) + bits(word, 16, 8) + bits(word, 24, 8)
    return (total.double() - 510.0) / (4 * (256**2 - 1) / 12) ** 0.5


def _balanced_signs(key: int, n: int) -> list[int]:
    """n signs in random order, as many +1 as -1 (one more +1 where n is odd)."""
    order = sorted(range(n), key=lambda value: python_draw(key, value))
    return [1 if order.index(value) * 2 < n else -1 for value in range(n)]
