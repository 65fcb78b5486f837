"""DLRM's dot products, and what its head reads."""

from __future__ import annotations

import torch

from kunlun.layers.dot_interaction import DotInteraction
from kunlun.models.dlrm import DLRM
from tests.support import toy_batch, toy_schema


def test_every_pair_of_tokens_is_multiplied_once():
    x = torch.randn(2, 4, 3)
    expected = torch.stack([(x[:, i] * x[:, j]).sum(1) for i in range(4) for j in range(i + 1, 4)], dim=1)
    torch.testing.assert_close(DotInteraction(4, 3)(x), expected)


def test_parameters_are_those_of_the_formula():
    """Bottom MLP 8 → 12 → 8; a head 8 + 15 pairs of 6 tokens → 16 → 1."""
    model = DLRM(toy_schema(), width=8, bottom_hidden=[12], head_hidden=[16])
    assert sum(p.numel() for p in model.bottom.parameters()) == 8 * 12 + 12 + 12 * 8 + 8
    assert sum(p.numel() for p in model.dot.parameters()) == 0
    assert sum(p.numel() for p in model.heads.parameters()) == (8 + 15) * 16 + 16 + 16 + 1


def test_the_head_reads_the_dense_vector_and_the_pairs_that_hold_it():
    """Three sparse fields, then the dense token, then two event types; the bottom MLP's output is the dense token."""
    torch.manual_seed(0)
    model = DLRM(toy_schema(), width=8, bottom_hidden=[12])
    batch = toy_batch(toy_schema(), 4, torch.Generator().manual_seed(0))
    seen = []
    model.heads.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(batch)
    tokens = list(model.tokens(batch, model.tables).unbind(1))
    tokens[3] = model.bottom(tokens[3])
    pairs = [(tokens[i] * tokens[j]).sum(1) for i in range(6) for j in range(i + 1, 6)]
    torch.testing.assert_close(seen[0], torch.cat([tokens[3], torch.stack(pairs, dim=1)], dim=1))
