"""A synthetic world with a known answer: sample i is a pure function of (seed, i), and so is its click probability.

    world = SyntheticWorld(PRESETS["tiny"])
    batch = world.batch(torch.arange(512))          # a Batch like any other data set's
    p = world.oracle(torch.arange(512))             # (512, 1): the probability its labels were drawn with

``docs/synthetic.md`` shows the model behind it; ``data/synthetic_oracle.py`` says what the best model can expect.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict

import torch
from torch import Tensor

from data.counter import bits, draw
from data.synthetic_config import MAX_ROWS, SPLITS, TYPES, Calibration, Strengths, SyntheticConfig
from data.synthetic_parts import PRICES, Parts, standardised
from data.synthetic_presets import PRESETS, shipped_calibration
from data.synthetic_streams import DAY, DEVICES, EPOCH, HOURS, PLACEMENTS, SEGMENTS, Impressions, People
from kunlun.features import TIME, Batch, EventType, FeatureSchema, Jagged, SparseField, Table, Task

WORLD_VERSION = 2  # counts up with any change to what a sample holds
DENSE = ("price", "account_age", "noise")
SPARSE = ("user", "item", "category", "hour", "device", "placement", "segment")
_FIRST_ID = 2  # ids 0 and 1 mean missing and unknown
_CHUNK_EVENTS = 3 * 2_048 * 48


class SyntheticWorld:
    """Computes samples, and their true probabilities, from their indices alone.

    Indices are int64 in [0, 2^62); ``split`` says which belong to train, valid and test. Tensors come back on the
    device of the indices. A world that is no preset is calibrated when it is made (a second or two).
    """

    def __init__(self, config: SyntheticConfig, calibration: Calibration | None = None) -> None:
        self.config = config
        self._people = People(config)
        self._parts = Parts(config)
        self.calibration = calibration or shipped_calibration(config) or calibrate(config)

    @property
    def schema(self) -> FeatureSchema:
        """What a model must know of this world."""
        c = self.config
        cards = {
            "user": c.user_buckets,
            "item": c.items,
            "category": c.categories,
            "hour": HOURS,
            "device": DEVICES,
            "placement": PLACEMENTS,
            "segment": SEGMENTS,
        }
        rates = {"click": c.ctr, "conversion": c.conversion_rate}
        event_fields = (SparseField("item", "item"), SparseField("category", "category"))
        return FeatureSchema(
            name="synthetic",
            tasks=tuple(Task(task, rates[task]) for task in c.tasks),
            dense=DENSE,
            sparse=tuple(SparseField(name, name) for name in SPARSE),
            tables={name: Table(rows=card + _FIRST_ID, encoding="identity") for name, card in cards.items()},
            events=tuple(
                EventType(name, event_fields, mean_length=length, max_length=c.max_events)
                for name, length in zip(TYPES, self.calibration.mean_lengths, strict=True)
            ),
            users=True,
            request_times=True,
            rows={split: c.rows(split) for split in SPLITS},
            provenance={"world_version": WORLD_VERSION, "config": asdict(c), "calibration": asdict(self.calibration)},
        )

    def split(self, name: str) -> range:
        """The indices of ``train``, ``valid`` or ``test``; they do not move when another split grows."""
        start = SPLITS.index(name) * MAX_ROWS if name in SPLITS else 0
        return range(start, start + self.config.rows(name))

    def batch(self, indices: Tensor, max_length: int | None = None) -> Batch:
        """The samples of ``indices`` (B,) int64; ``row`` is the index.

        ``max_length`` shows fewer events per type, the newest; labels stay as they are, so a model may then fall short
        of the oracle.
        """
        return self.known_batch(indices, max_length)[0]

    def known_batch(self, indices: Tensor, max_length: int | None = None) -> tuple[Batch, Tensor]:
        """``batch`` and ``oracle`` of the same indices for the price of one."""
        c = self.config
        if max_length is not None and not 1 <= max_length <= c.max_events:
            raise ValueError(f"synthetic world: max_length must lie in [1, {c.max_events}], got {max_length}")
        sample = self._impressions(indices)
        p = self.probability(self._standard_parts(sample))
        batch = Batch(
            labels=self._labels(sample.word, p),
            dense=self._dense(sample),
            sparse=_FIRST_ID
            + torch.stack(
                [
                    self._parts.user_bucket(sample.user),
                    sample.item,
                    sample.category,
                    sample.hour,
                    sample.device,
                    sample.placement,
                    sample.segment,
                ],
                dim=1,
            ),
            row=indices,
            events=_packed_events(sample, c.max_events, max_length or c.max_events),
            request_time=sample.request_time,
            user=sample.user,
        )
        return batch, p

    def parts(self, indices: Tensor) -> Tensor:
        """(B, len(PARTS)) float64: the standardised parts, order of ``PARTS``, whatever their strengths."""
        chunks = _chunks(indices, self.config)
        return torch.cat([self._standard_parts(self._impressions(chunk)) for chunk in chunks])

    def oracle(self, indices: Tensor) -> Tensor:
        """(B, tasks) float64: the true probabilities of the labels."""
        return self.probability(self.parts(indices))

    def _impressions(self, indices: Tensor) -> Impressions:
        if indices.dtype != torch.int64 or indices.dim() != 1:
            raise TypeError(f"indices must be int64 of shape (B,), got {indices.dtype} of {tuple(indices.shape)}")
        if bool(bits(indices, 62, 2).any()):
            raise IndexError("indices must lie in [0, 2^62)")
        return self._people.impressions(indices)

    def _standard_parts(self, sample: Impressions) -> Tensor:
        raw = self._parts(sample)
        mean = raw.new_tensor(self.calibration.mean)
        return (raw - mean) / raw.new_tensor(self.calibration.std)

    def probability(self, parts: Tensor) -> Tensor:
        """(B, tasks): the true probabilities, from ``parts`` (B, len(PARTS))."""
        c = self.config
        click = sigmoid(self.calibration.bias[0] + log_odds_of(parts, c.strengths))
        click = (1.0 - c.label_noise) * click + c.label_noise * c.ctr
        if "conversion" not in c.tasks:
            return click[:, None]
        converts = sigmoid(self.calibration.bias[1] + log_odds_of(parts, c.conversion_strengths))
        return torch.stack([click, click * converts], dim=1)

    def _labels(self, word: Tensor, p: Tensor) -> Tensor:
        """(B, tasks) float32: Bernoulli(p) in steps of 2^-24; one draw per sample, so every conversion is a click."""
        uniform = bits(draw(word, 4), 40, 24)
        return (uniform[:, None] < (p * (1 << 24)).long()).float()

    def _dense(self, sample: Impressions) -> Tensor:
        """(B, len(DENSE)) float32, each of mean 0 and variance about 1."""
        c = self.config
        first = c.horizon_days - c.request_days
        age = ((sample.request_time - EPOCH) // DAY - sample.join_day).double()
        spread = math.sqrt((first**2 + c.request_days**2) / 12)
        price = standardised(self._parts.price(sample.item), PRICES)
        noise = standardised(bits(draw(sample.word, 5), 0, 16), 1 << 16)
        return torch.stack([price, (age - c.horizon_days / 2) / spread, noise], dim=1).float()


def log_odds_of(parts: Tensor, strengths: Strengths) -> Tensor:
    """(B,) Σ strength · part, added up in the order of ``PARTS`` so that the result does not depend on B."""
    total = torch.zeros_like(parts[:, 0])
    for number, strength in enumerate(strengths.by_part().values()):
        if strength:
            total = total + strength * parts[:, number]
    return total


def sigmoid(log_odds: Tensor) -> Tensor:
    """The logistic function of float64 by sums, products and one quotient, each exactly rounded.

    ``torch.sigmoid`` may differ in the last bit with the place of a value in its tensor and with the device, and
    so might a label. Here e^-|x| is the 64th power of the Taylor polynomial of e^(-|x| / 64); |x| is cut at 40.
    """
    x = log_odds.abs().clamp(max=40.0) * (-1.0 / 64.0)
    e = torch.ones_like(x)
    for order in range(14, 0, -1):
        e = 1.0 + e * x * (1.0 / order)
    for _ in range(6):
        e = e * e
    return torch.where(log_odds < 0, e, torch.ones_like(e)) / (1.0 + e)


def _packed_events(sample: Impressions, shown: int, max_length: int) -> dict[str, dict[str, Jagged]]:
    """Event type → field → Jagged, at most the newest ``max_length`` of the ``shown`` events of each."""
    events, n = sample.events, sample.user.numel()
    index = None
    lengths, offsets = events.offsets.diff(), events.offsets
    if max_length < shown:
        place = torch.arange(events.time.numel(), device=offsets.device) - offsets.index_select(0, events.segment)
        index = (place >= (lengths - max_length).index_select(0, events.segment)).nonzero().view(-1)
        offsets = torch.cat([offsets[:1], lengths.clamp(max=max_length).cumsum(0)])
    columns = {"item": events.item + _FIRST_ID, "category": events.category + _FIRST_ID, TIME: events.time}
    if index is not None:
        columns = {name: column.index_select(0, index) for name, column in columns.items()}
    packed = {}
    for number, name in enumerate(TYPES):
        own = offsets[number * n : (number + 1) * n + 1]
        begin, end = int(own[0]), int(own[-1])
        own = own - begin
        packed[name] = {field: Jagged(column[begin:end], own, max_length) for field, column in columns.items()}
    return packed


def _chunks(indices: Tensor, config: SyntheticConfig) -> tuple[Tensor, ...]:
    """Pieces that stay in a processor's cache."""
    return indices.split(max(1, _CHUNK_EVENTS // (len(TYPES) * config.max_events)))


def calibrate(config: SyntheticConfig, rows: int = 1 << 15) -> Calibration:
    """The constants of a world, from ``rows`` samples that are in no split.

    Mean and deviation of each part; then the biases that bring the mean probabilities to ``ctr`` and
    ``conversion_rate`` on these samples, hence to about 0.25 / √rows on others. Rounded to six decimals, so that
    the order in which a machine adds up does not show.
    """
    people, parts = People(config), Parts(config)
    start = len(SPLITS) * MAX_ROWS
    raw, lengths = [], torch.zeros(len(TYPES), dtype=torch.int64)
    for chunk in _chunks(torch.arange(start, start + rows), config):
        sample = people.impressions(chunk)
        raw.append(parts(sample))
        lengths += sample.events.offsets.diff().view(len(TYPES), -1).sum(1)
    raw_parts = torch.cat(raw)
    std, mean = torch.std_mean(raw_parts, dim=0)
    mean, std = (torch.round(x, decimals=6) for x in (mean, torch.where(std > 0, std, 1.0)))
    standard = (raw_parts - mean) / std
    log_odds = log_odds_of(standard, config.strengths)
    bias = _solve_bias(log_odds, torch.ones_like(log_odds), config.ctr)
    biases = [bias]
    if "conversion" in config.tasks:
        click = (1.0 - config.label_noise) * sigmoid(bias + log_odds) + config.label_noise * config.ctr
        log_odds = log_odds_of(standard, config.conversion_strengths)
        biases.append(_solve_bias(log_odds, click, config.conversion_rate))
    return Calibration(
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        bias=tuple(biases),
        mean_lengths=tuple(torch.round(lengths.double() / rows, decimals=6).tolist()),
    )


def _solve_bias(log_odds: Tensor, weight: Tensor, target: float) -> float:
    """The b with mean(weight · σ(b + log_odds)) = target, by bisection; target must lie below mean(weight)."""
    low, high = -200.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        reached = float((weight * sigmoid(middle + log_odds)).mean())
        low, high = (middle, high) if reached < target else (low, middle)
    return round((low + high) / 2, 6)


def _main(name: str) -> None:
    """Print the constants of a preset for ``data/synthetic_presets.py``, what its oracle can do, and its speed."""
    from data.synthetic_oracle import oracle_ne, summarise

    torch.set_num_threads(1)
    config = PRESETS[name]
    calibration = calibrate(config, rows=1 << 20)
    print(f"{name!r}: {calibration},")
    world = SyntheticWorld(config, calibration)
    for split in SPLITS:
        print(split, *(oracle_ne(world, split, task) for task in config.tasks))
    print(summarise(world).line())
    started = time.perf_counter()
    n_batches = 40
    for batch in range(n_batches):
        world.batch(torch.arange(batch * 512, (batch + 1) * 512))
    print(f"{n_batches * 512 / (time.perf_counter() - started):,.0f} samples/s on one core in batches of 512")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PRESETS:
        sys.exit(f"usage: python -m data.synthetic {'|'.join(PRESETS)}")
    _main(sys.argv[1])
