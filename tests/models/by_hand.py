"""The models with every op enumerated pair by pair, so that a FLOP counter sees plain matrix products."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kernels.activations import per_head
from kunlun.features import Batch
from kunlun.layers import attention, gdpa, pooling, stu
from kunlun.models import dien, din
from tests.support import gdpa_by_hand, seeds_by_hand, spans, window_by_hand


def _gdpa(q, k, v, offsets, max_length, *, tau, activation, tau_position):
    return gdpa_by_hand(q, k, v, offsets, per_head(activation, q.shape[1]), tau, tau_position)


def _gdpa_block(s, k, v, offsets, max_length, *, norm_weight, norm_bias, out_weight, norm_eps, out_eps, **options):
    q = nn.functional.layer_norm(s, s.shape[1:], norm_weight, norm_bias, norm_eps)
    g = _gdpa(q.unflatten(1, k.shape[2:]), k, v, offsets, max_length, **options).flatten(1) + q
    return s + nn.functional.rms_norm(g, s.shape[1:], out_weight, out_eps)


def _window(q, k, v, offsets, max_length, *, left, right, rotation):
    left, right = (max_length if side is None else side for side in (left, right))
    return window_by_hand(q, k, v, offsets, left, right, 1.0)


def _seeds(seeds, k, v, offsets, max_length, *, rotation):
    return seeds_by_hand(seeds, k, v, offsets, 1.0)


def _segments(x, w, offsets):
    return torch.cat([x[a:b] @ w[i] for i, (a, b) in enumerate(spans(offsets))])


def _weighted_sum(weight, sequence):
    return torch.cat([weight[a:b].T @ sequence.values[a:b] for a, b in spans(sequence.offsets)])


def _scores(sequence, query):
    parts = [sequence.values[a:b] @ query[i, :, None] for i, (a, b) in enumerate(spans(sequence.offsets))]
    return torch.cat(parts)[:, 0]


def _pointwise(q, k, v, sequence, places, bias, size):
    rows = []
    for start, end in spans(sequence.offsets):
        for t in range(start, end):
            seen = [j for j in range(start, t + 1) if j == t or not places.candidate[j]]
            weights = [nn.functional.silu(q[t, None, h] @ k[seen, h].T) / size for h in range(q.shape[1])]
            rows.append(torch.cat([w @ v[seen, h] for h, w in enumerate(weights)]))
    return torch.stack(rows)


def enumerate_ops(monkeypatch) -> None:
    """Puts the loops in the place of the kernels, for their FLOPs: scales and rotations are left out."""
    monkeypatch.setattr(gdpa, "gdpa", _gdpa)
    monkeypatch.setattr(gdpa, "gdpa_block", _gdpa_block)
    monkeypatch.setattr(gdpa, "segment_matmul", _segments)
    monkeypatch.setattr(attention, "window_attention", _window)
    monkeypatch.setattr(pooling, "seed_attention", _seeds)
    monkeypatch.setattr(stu, "pointwise_attention", _pointwise)
    monkeypatch.setattr(dien, "scores_of", _scores)
    monkeypatch.setattr(din, "weighted_sum", _weighted_sum)


def counted_flops(model: nn.Module, batch: Batch) -> int:
    """Forward, of the matrix products that torch sees."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(batch)
    return counter.get_total_flops()
