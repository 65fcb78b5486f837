"""Model FLOPs utilisation: the FLOPs that the model asks for, over those that the device could have done.

MFU = FLOPs per sample × samples/s ÷ peak FLOP/s; a training step counts three forward passes, and nothing that is
computed twice to save memory counts (PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema
from kunlun.layers.sharded_tables import ShardedTables

TRAINING_PASSES = 3


def mfu(
    flops_per_sample: float | None, samples_per_second: float, peak_flops: float | None, passes: int
) -> float | None:
    """As a fraction; ``flops_per_sample`` are those of a forward pass, and ``passes`` is 1 in inference, 3 in training.
    None where a factor is unknown."""
    if flops_per_sample is None or peak_flops is None:
        return None
    return passes * flops_per_sample * samples_per_second / peak_flops


def flops_by_part(model: nn.Module, lengths: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Mean forward FLOPs of a sample, by part, from the model's ``flops(lengths)``; {} without one.

    Attention is not linear in the length, so this is the mean over the rows' own lengths, never the FLOPs of the mean
    length. ``lengths`` are those of :func:`history_lengths`, of one batch after another.
    """
    count = getattr(model, "flops", None)
    if not callable(count):
        return {}
    rows: Counter[tuple[tuple[str, int], ...]] = Counter()
    for by_type in lengths:
        # Without histories all rows are alike.
        table = torch.stack(list(by_type.values()), dim=1).tolist() if by_type else [()]
        rows.update(tuple(zip(by_type, row, strict=True)) for row in table)
    total: Counter[str] = Counter()
    for row, times in rows.items():
        for part, flops in count(dict(row)).items():
            total[part] += flops * times
    return {part: flops / rows.total() for part, flops in total.items()}


def flops_at_mean_lengths(model: nn.Module, schema: FeatureSchema) -> int | None:
    """Forward FLOPs of a sample whose histories have the schema's mean lengths; None for a model without ``flops``.

    For comparing sizes without reading data; where attention counts, `flops_by_part` of real batches is a little more.
    """
    count = getattr(model, "flops", None)
    lengths = {e.name: min(round(e.mean_length), e.max_length) for e in schema.events}
    return sum(count(lengths).values()) if callable(count) else None


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """Parameters by kind: ``embedding`` tables, of all processes, and ``dense``, which is all else."""
    total = sum(p.numel() for p in module.parameters())
    tables = (nn.Embedding, nn.EmbeddingBag)
    own = {id(m.weight): m.weight.numel() for m in module.modules() if isinstance(m, tables)}
    sharded = sum(m.numel() for m in module.modules() if isinstance(m, ShardedTables))
    return {"dense": total - sum(own.values()), "embedding": sum(own.values()) + sharded}


def history_lengths(batch: Batch, rows: int | None = None) -> dict[str, Tensor]:
    """Event type → how many events each row has (B,), or ``rows`` of them, evenly spaced.

    A history that rows share counts for each of them, as in the model's own definition of a sample.
    """
    lengths = {name: next(iter(columns.values())).lengths() for name, columns in batch.events.items()}
    if batch.history is not None:
        lengths = {name: n[batch.history] for name, n in lengths.items()}
    if rows is not None and rows < len(batch):
        kept = torch.linspace(0, len(batch) - 1, rows, device=batch.labels.device).long()
        lengths = {name: n[kept] for name, n in lengths.items()}
    return lengths


def tokens(batch: Batch) -> int:
    """Events and context fields that the model takes in, all dense features as one; a shared history counts once."""
    events = sum(next(iter(columns.values())).values.shape[0] for columns in batch.events.values())
    fields = batch.sparse.shape[1] + len(batch.bags) + (batch.dense.shape[1] > 0)
    return events + fields * len(batch)
