"""Wukong's layers on the tokens of a data set."""

from __future__ import annotations

from dataclasses import replace

import torch

from kunlun.layers.wukong import WukongConfig
from kunlun.models.wukong import Wukong
from tests.support import toy_batch, toy_schema


def test_parameters_are_those_of_the_formula():
    """Per layer: Y (n, k), LN(n k), the MLP, W_L, the residual where token counts differ, LN(d)."""
    d, k, hidden, out, n = 8, 3, 16, 8, 6
    model = Wukong(toy_schema(), d, 2, WukongConfig(1, out, k, hidden))

    def layer(n: int) -> int:
        machine = n * k + 2 * n * k + n * k * hidden + hidden + hidden * out // 2 * d + out // 2 * d
        return machine + n * (out // 2) + (n * out if n != out else 0) + 2 * d

    assert model.tokens.count == n
    assert [sum(p.numel() for p in m.parameters()) for m in model.layers] == [layer(n), layer(out)]


def test_an_event_type_is_the_mean_of_its_encoded_events():
    torch.manual_seed(0)
    model = Wukong(toy_schema(), 8)
    batch = toy_batch(toy_schema(), 3, torch.Generator().manual_seed(0), torch.tensor([2, 0, 3]))
    tokens = model.tokens(batch, model.tables)
    for place, name in ((4, "view"), (5, "buy")):
        events = model.tokens.encoders[name](batch.events[name], model.tables).values
        expected = torch.stack([events[:2].mean(0), torch.zeros(8), events[2:].mean(0)])
        torch.testing.assert_close(tokens[:, place], expected)


def test_a_shared_history_is_encoded_once():
    model = Wukong(toy_schema(), 8)
    batch = toy_batch(toy_schema(), 2, torch.Generator().manual_seed(0), torch.tensor([4, 3]))
    seen = []
    model.tokens.encoders["view"].hidden.register_forward_hook(lambda m, x, y: seen.append(x[0].shape[0]))
    rows = toy_batch(toy_schema(), 6, torch.Generator().manual_seed(1))
    model(replace(rows, events=batch.events, history=torch.tensor([0, 1, 1, 0, 1, 1])))
    assert seen == [7]
