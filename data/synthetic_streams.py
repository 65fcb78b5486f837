"""The people of the synthetic world: who asks, when, with which past, for which candidate.

A user's past is a fixed stream: days are cut into slots of the user's own period (per event type), each slot holds one
visit, each visit one to four events. Any slot can be computed without the others, so a user asked again later has the
same past and more of it, and only the events that are shown are ever computed. Where conversions are delayed, their
slots are whole numbers of click slots: one of the click visits inside converts, before the slot ends.

Legend: B samples · E event types · V visits · N events, packed. Segment e·B + b is type e of sample b.
All of it is integer arithmetic on counter-based draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.counter import below, below_small, bits, draw, make_key
from data.synthetic_config import TYPES, SyntheticConfig

DAY = 86_400
EPOCH = 1_704_081_600  # 2024-01-01 04:00 UTC: days begin at 04:00, so that a visit never crosses into the next day
HOURS, DEVICES, PLACEMENTS, SEGMENTS = 24, 4, 6, 8
MAX_VISIT = 4
_CLICK, _CONVERSION = (TYPES.index(name) for name in ("click", "conversion"))

# Visits that begin in the 1st, 2nd, … hour of a day, out of 64: a small peak at noon, a large one in the evening.
_VISITS_BY_HOUR = (1, 1, 2, 3, 4, 4, 4, 5, 5, 4, 3, 3, 3, 4, 5, 6, 5, 2)
_HOUR_OF_VISIT = tuple(hour for hour, count in enumerate(_VISITS_BY_HOUR) for _ in range(count))
_VISIT_SIZES = (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, MAX_VISIT)
# Seconds between two events of one visit, to which up to a half is added or taken away.
_SPACINGS = (20, 40, 60, 90, 120, 180, 240, 300, 420, 600, 900, 1200, 1800, 2400, 4200, 5400)
# Seconds from the begin of a visit to a request in it, to which up to a half is added.
_REQUEST_DELAYS = (30, 60, 120, 300, 600, 900, 1800, 2700, 3600, 5400, 7200, 10800, 14400, 21600, 32400, 43200)
# Seconds from a click to the moment its conversion is known, to which up to a half is added.
_CONVERSION_DELAYS = (
    *(120, 300, 600, 1_200, 1_800, 3_600, 7_200, 14_400),
    *(28_800, 43_200, DAY, DAY * 3 // 2, 2 * DAY, 3 * DAY, 5 * DAY, 7 * DAY),
)
_LEAST_DELAY, _ORDER_SPACING = 60, 60
_DEVICES = (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3)  # 6 : 5 : 3 : 2


@dataclass(frozen=True)
class Events:
    """Packed events: time, item, category, segment (N,) int64, ordered by segment, then time · offsets (E·B + 1,)."""

    time: Tensor
    item: Tensor
    category: Tensor
    segment: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Impressions:
    """B impressions with their pasts; every tensor (B,) int64 except the packed events.

    word holds 64 random bits per sample from which labels and noise are drawn.
    """

    word: Tensor
    user: Tensor
    request_time: Tensor
    item: Tensor
    category: Tensor
    hour: Tensor
    device: Tensor
    placement: Tensor
    segment: Tensor
    join_day: Tensor
    events: Events


@dataclass(frozen=True)
class _Visits:
    """Packed visits (V,) int64: random bits, segment, the request's time, the time of the first event, seconds between
    events, number of events, the interest's category, on which side of its pair of groups the visit begins, noise of
    the event type in 1/256."""

    word: Tensor
    segment: Tensor
    request_time: Tensor
    begin: Tensor
    spacing: Tensor
    size: Tensor
    category: Tensor
    side: Tensor
    noise: Tensor


class People:
    """Computes impressions and their pasts from sample indices."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self._sample_key = make_key(config.seed, 1)
        self._user_key = make_key(config.seed, 2)
        self._tables: dict[torch.device, dict[str, Tensor]] = {}

    def impressions(self, indices: Tensor) -> Impressions:
        """The impressions of ``indices`` (B,) int64, with at most the newest ``max_events`` of each event type."""
        p = self.config
        tables = self._on(indices.device)
        word = draw(self._sample_key, indices)
        moment, candidate, context = draw(word, 1), draw(word, 2), draw(word, 3)
        user = below(word, p.users)
        person = draw(self._user_key, user)
        join_day = below(person, p.horizon_days - p.request_days)
        # (E, B): the key and the period of each user's stream of each type
        stream = draw(person, torch.arange(1, len(TYPES) + 1, device=indices.device)[:, None])
        period = tables["periods"].gather(1, bits(stream, 0, 6))
        if p.delayed_conversions:
            period[_CONVERSION] *= period[_CLICK]

        request_time = self._request_time(moment, stream[0], period[0], join_day)
        category, item = self._candidate(candidate, person, request_time)
        visits = self._visits(person, stream, period, join_day, request_time)
        events = self._events(visits, n_segments=stream.numel())
        return Impressions(
            word=word,
            user=user,
            request_time=request_time,
            item=item,
            category=category,
            hour=(request_time // 3600) % HOURS,
            device=_at(tables["devices"], bits(context, 0, 4)),
            placement=below_small(context, 8, PLACEMENTS),
            segment=bits(person, 0, 3),
            join_day=join_day,
            events=events,
        )

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """The constant tables on ``device``."""
        if device not in self._tables:
            streams = self.config.streams()
            raw = {
                "periods": [[s.periods[i * len(s.periods) // 64] for i in range(64)] for s in streams],
                "noise": [round(s.noise * 256) for s in streams],
                "hours": _HOUR_OF_VISIT,
                "sizes": _VISIT_SIZES,
                "spacings": _SPACINGS,
                "delays": _REQUEST_DELAYS,
                "conversion_delays": _CONVERSION_DELAYS,
                "devices": _DEVICES,
            }
            self._tables[device] = {name: torch.tensor(value, device=device) for name, value in raw.items()}
        return self._tables[device]

    def _visit_time(self, visit: Tensor, first_day: Tensor, period: Tensor) -> Tensor:
        """When the visit with the random bits ``visit`` begins, in a slot of ``period`` days from ``first_day``."""
        day = first_day + below_small(visit, 0, period)
        hour = _at(self._on(visit.device)["hours"], bits(visit, 16, 6))
        second = hour * 3600 + ((bits(visit, 22, 12) * 3600) >> 12)
        return EPOCH + day * DAY + second

    def _request_time(self, moment: Tensor, stream: Tensor, period: Tensor, join_day: Tensor) -> Tensor:
        """Three of four requests come shortly after a visit of the first type began, the others at any time."""
        p = self.config
        day = p.horizon_days - p.request_days + below_small(moment, 0, p.request_days)
        anytime = self._visit_time(moment >> 16, day, torch.ones_like(day))
        slots = period.clamp(min=1)
        slot = (day - join_day) // slots
        begin = self._visit_time(draw(stream, slot + 1), join_day + slot * slots, slots)
        delay = _at(self._on(moment.device)["delays"], bits(moment, 52, 4))
        inside = begin + delay + ((bits(moment, 56, 8) * delay) >> 9)
        return torch.where((period > 0) & (bits(moment, 50, 2) > 0), inside, anytime)

    def _interest(self, person: Tensor, choice: Tensor, day: Tensor) -> Tensor:
        """The random bits of interest ``choice`` of ``person`` on ``day``; interests change at staggered times."""
        p = self.config
        stagger = (bits(person, 8, 16) + choice * (p.interest_days // p.interests)) % p.interest_days
        era = (day + stagger) // p.interest_days
        return draw(person, 1_000 + era * p.interests + choice)

    def _popular(self, word: Tensor) -> Tensor:
        """A category by popularity, which falls linearly with its number."""
        n = self.config.categories
        return torch.minimum(below_small(word, 8, n), below_small(word, 24, n))

    def _member(self, word: Tensor, group: Tensor) -> Tensor:
        """Some category of ``group``."""
        p = self.config
        return (group & (p.groups - 1)) + p.groups * below_small(word, 8, p.categories // p.groups)

    def _item(self, word: Tensor, category: Tensor) -> Tensor:
        """An item of ``category``: its rank falls in each octave [2^k - 1, 2^(k+1) - 1) equally often (Zipf)."""
        p = self.config
        per_category = p.items // p.categories
        octave = below_small(word, 0, (per_category - 1).bit_length() or 1)
        rank = (torch.ones_like(octave) << octave) - 1
        rank = rank + (bits(word, 16, 32) & rank)
        rank = torch.where(rank < per_category, rank, rank - per_category)
        return category + p.categories * rank

    def _candidate(self, word: Tensor, person: Tensor, request_time: Tensor) -> tuple[Tensor, Tensor]:
        """Category and item: of a present interest (9/16), of a group beside one (3/16), or by popularity (4/16)."""
        p = self.config
        day = (request_time - EPOCH) // DAY
        interest = below(self._interest(person, below_small(word, 40, p.interests), day), p.categories)
        beside = self._member(word, interest + 2 * bits(word, 56, 1) - 1)
        kind = bits(word, 60, 4)
        category = torch.where(kind < 9, interest, torch.where(kind < 12, beside, self._popular(word)))
        return category, self._item(draw(word, 1), category)

    def _visits(
        self, person: Tensor, stream: Tensor, period: Tensor, join_day: Tensor, request_time: Tensor
    ) -> _Visits:
        """The newest visits of every segment, as many as may show an event."""
        p, tables = self.config, self._on(person.device)
        n_samples, most = person.numel(), p.max_events
        # Every slot has at least one event, but those of the last one may come after the request.
        last_day = (request_time - EPOCH) // DAY
        slots = torch.where(period > 0, (last_day - join_day) // period.clamp(min=1) + 1, 0).view(-1)
        candidates = slots.clamp(max=most + 1)
        segment, position = _expand(candidates)
        slot = position + _at(slots - candidates, segment)
        word = draw(_at(stream.view(-1), segment), slot + 1)
        days = period
        if p.delayed_conversions:
            slot, word = self._converted(slot, word, segment, stream, period)
            days = torch.stack([period[_CLICK] if e == _CONVERSION else own for e, own in enumerate(period)])
        size = _at(tables["sizes"], bits(word, 34, 4))
        if p.delayed_conversions:
            size = torch.where(segment // n_samples == _CONVERSION, (size + 1) >> 1, size)
        # Of no use: visits with enough events after them, even without those of the last visit.
        held = _offsets(size)
        after = _at(_at(held, candidates.cumsum(0)), segment) - held[1:]
        used = (after < most + MAX_VISIT).nonzero().view(-1)
        segment, slot, word, size = (_at(column, used) for column in (segment, slot, word, size))

        sample = segment % n_samples
        days = _at(days.view(-1), segment)
        first_day = _at(join_day, sample) + slot * days
        interest = self._interest(_at(person, sample), below_small(word, 42, p.interests), first_day)
        visits = _Visits(
            word=word,
            segment=segment,
            request_time=_at(request_time, sample),
            begin=self._visit_time(word, first_day, days),
            spacing=_at(tables["spacings"], bits(word, 38, 4)),
            size=size,
            category=below(interest, p.categories),
            side=bits(word, 58, 1),
            noise=_at(tables["noise"], segment // n_samples),
        )
        return self._delayed(visits, slot, days, first_day, period) if p.delayed_conversions else visits

    def _converted(
        self, slot: Tensor, word: Tensor, segment: Tensor, stream: Tensor, period: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Slot and random bits of each visit; of the click visit that converts where it is a conversion.

        The first clicks of a visit convert, so their events have the same bits and mostly the same item.
        """
        n_samples = stream.shape[1]
        begin, end = torch.searchsorted(segment, segment.new_tensor([_CONVERSION, _CONVERSION + 1]) * n_samples)
        own = torch.arange(int(begin), int(end), device=segment.device)
        sample = _at(segment, own) - _CONVERSION * n_samples
        clicks = _at(period[_CONVERSION] // period[_CLICK].clamp(min=1), sample)
        click_slot = _at(slot, own) * clicks + below_small(_at(word, own), 0, clicks)
        click_word = draw(_at(stream[_CLICK], sample), click_slot + 1)
        return slot.index_copy(0, own, click_slot), word.index_copy(0, own, click_word)

    def _delayed(self, visits: _Visits, slot: Tensor, days: Tensor, first_day: Tensor, period: Tensor) -> _Visits:
        """With every conversion some time after the clicks it is of, yet inside its slot, which keeps them in order."""
        n_samples = period.shape[1]
        own = (visits.segment // n_samples == _CONVERSION).nonzero().view(-1)
        word, click_days = _at(visits.word, own), _at(days, own)
        spacing, last = _at(visits.spacing, own), _at(visits.size, own) - 1
        last_click = _at(visits.begin, own) + last * spacing + ((bits(draw(word, last + 1), 56, 8) * spacing) >> 9)
        own_days = _at(period.view(-1), _at(visits.segment, own))
        behind = _at(slot, own) % (own_days // click_days)
        end = EPOCH + (_at(first_day, own) + own_days - behind * click_days) * DAY
        more = draw(word, MAX_VISIT + 1)
        delay = _at(self._on(word.device)["conversion_delays"], bits(more, 0, 4))
        delay = delay + ((bits(more, 56, 8) * delay) >> 9)
        room = end - last_click - _LEAST_DELAY - MAX_VISIT * _ORDER_SPACING * 3 // 2
        known = last_click + _LEAST_DELAY + (delay - _LEAST_DELAY) % room
        return replace(
            visits,
            begin=visits.begin.index_copy(0, own, known),
            spacing=visits.spacing.index_fill(0, own, _ORDER_SPACING),
        )

    def _events(self, visits: _Visits, n_segments: int) -> Events:
        """All events strictly before the request, the newest ``max_events`` of each segment."""
        most = self.config.max_events
        visit, number = _expand(visits.size)
        segment = _at(visits.segment, visit)
        word = draw(_at(visits.word, visit), number + 1)
        spacing = _at(visits.spacing, visit)
        time = _at(visits.begin, visit) + number * spacing + ((bits(word, 56, 8) * spacing) >> 9)
        before = time < _at(visits.request_time, visit)
        # Times rise within a segment, so those before the request are its first ``known``.
        zeros = time.new_zeros(n_segments)
        known = zeros.index_add(0, segment, before.long())
        first = _offsets(zeros.index_add(0, visits.segment, visits.size))[:-1] + known - most
        place = torch.arange(time.numel(), device=time.device)
        chosen = (before & (place >= _at(first, segment))).nonzero().view(-1)
        visit, number, segment, word, time = (_at(column, chosen) for column in (visit, number, segment, word, time))

        # An event of the interest's category or group, or the other side of the pair: a category of the next group.
        own = _at(visits.category, visit)
        other_side = (number + _at(visits.side, visit)) & 1
        near = self._member(word, own + other_side)
        category = torch.where((other_side == 0) & (bits(word, 48, 2) > 0), own, near)
        noisy = bits(word, 40, 8) < _at(visits.noise, visit)
        category = torch.where(noisy, self._popular(word), category)
        return Events(
            time=time,
            item=self._item(draw(word, 1), category),
            category=category,
            segment=segment,
            offsets=_offsets(known.clamp(max=most)),
        )


def _at(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` for one dimension, several times faster on CPU."""
    return values.index_select(0, index)


def _offsets(lengths: Tensor) -> Tensor:
    """(n + 1,) offsets of n packed sequences."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _expand(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """For packed sequences of these lengths: of each element its sequence and its position in it."""
    offsets = _offsets(lengths)
    total = int(offsets[-1])
    owner = torch.repeat_interleave(lengths, output_size=total)
    return owner, torch.arange(total, device=lengths.device) - _at(offsets, owner)
