"""DCNv2's cross layers against their formula."""

from __future__ import annotations

import pytest
import torch

from kunlun.layers.cross_network import CrossNetwork
from kunlun.models.dcnv2 import DCNv2
from tests.support import toy_schema


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layers_are_their_formula_number_by_number(rank):
    torch.manual_seed(0)
    network = CrossNetwork(5, 2, rank).double()
    x0 = torch.randn(5, dtype=torch.float64)
    x = x0.clone()
    for layer in network.layers:
        weight = layer.weight if rank is None else layer[1].weight @ layer[0].weight
        bias = layer.bias if rank is None else layer[1].bias
        x = torch.stack([x0[i] * (sum(weight[i, j] * x[j] for j in range(5)) + bias[i]) + x[i] for i in range(5)])
    torch.testing.assert_close(network(x0[None])[0], x)


def test_a_layer_raises_the_degree_by_one():
    """Without biases the highest degree of L layers is L + 1: the L + 2 nd difference along a ray vanishes."""
    torch.manual_seed(0)
    network = CrossNetwork(4, 2).double()
    for layer in network.layers:
        torch.nn.init.zeros_(layer.bias)
    x = torch.randn(4, dtype=torch.float64)
    values = torch.stack([network((t * x)[None])[0] for t in range(6)])
    third, fourth = (torch.diff(values, n=n, dim=0) for n in (3, 4))
    assert third.abs().max() > 1e-3
    assert fourth.abs().max() < 1e-10


@pytest.mark.parametrize("rank", [None, 3])
def test_parameters_are_those_of_the_formula(rank):
    model = DCNv2(toy_schema(), width=8, layers=2, rank=rank, head_hidden=[16])
    n = (3 + 1 + 2) * 8
    assert sum(p.numel() for p in model.cross.parameters()) == 2 * (n + (n * n if rank is None else 2 * n * rank))
    assert sum(p.numel() for p in model.heads.parameters()) == n * 16 + 16 + 16 + 1
