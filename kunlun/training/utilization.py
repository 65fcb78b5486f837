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

TRAINING_PASSES = 3


def mfu(
    flops_per_sample: float | None, samples_per_second: float, peak_flops: float | None, passes: int
) -> float | None:
    """As a fraction; ``flops_per_sample`` are those of a forward pass, and ``passes`` is 1 in inference, 3 in training.
    None where a factor is unknown."""
    if flops_per_sample is None or peak_flops is None:
        return None
    return passes * flops_per_sample * samples_per_second / peak_flops


def flops_by_part(model: nn.Module, batches: Iterable[Batch], rows_per_batch: int | None = None) -> dict[str, float]:
    """Mean forward FLOPs of a sample of ``batches``, by part, from the model's ``flops(lengths)``; {} without one.

    Attention is not linear in the length, so this is the mean over the rows' own lengths, never the FLOPs of the mean
    length. A history that rows share counts for each of them, as in the model's own definition of a sample.

    Args:
        rows_per_batch: take only so many rows of each batch, evenly spaced.
    """
    count = getattr(model, "flops", None)
    if not callable(count):
        return {}
    rows = Counter(lengths for batch in batches for lengths in _lengths(batch, rows_per_batch))
    total: Counter[str] = Counter()
    for lengths, times in rows.items():
        for part, flops in count(dict(lengths)).items():
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
    """Parameters by kind: ``embedding`` tables, and ``dense``, which is all else."""
    total = sum(p.numel() for p in module.parameters())
    tables = (nn.Embedding, nn.EmbeddingBag)
    own = {id(m.weight): m.weight.numel() for m in module.modules() if isinstance(m, tables)}
    return {"dense": total - sum(own.values()), "embedding": sum(own.values())}


def tokens(batch: Batch) -> int:
    """Events of all rows; a history that rows share counts for each of them."""
    return int(sum(lengths.sum() for lengths in history_lengths(batch).values()))


def history_lengths(batch: Batch) -> dict[str, Tensor]:
    """Event type → how many events each row has (B,)."""
    lengths = {name: next(iter(columns.values())).lengths() for name, columns in batch.events.items()}
    return lengths if batch.history is None else {name: n[batch.history] for name, n in lengths.items()}


def _lengths(batch: Batch, rows: int | None) -> list[tuple[tuple[str, int], ...]]:
    """Of each row, or of ``rows`` of them: its event types with their lengths."""
    by_type = history_lengths(batch)
    if rows is not None and rows < len(batch):
        kept = torch.linspace(0, len(batch) - 1, rows).long()
        by_type = {name: lengths[kept.to(lengths.device)] for name, lengths in by_type.items()}
    names = list(by_type)
    if not names:
        return [()] * (rows or len(batch))
    return [tuple(zip(names, row, strict=True)) for row in torch.stack(list(by_type.values()), dim=1).tolist()]
