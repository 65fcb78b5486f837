"""The parts of the model against their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kunlun.features import BagField, SparseField, Table
from kunlun.layers.attention import SelfAttention
from kunlun.layers.context import ContextKeyValue, Gate
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables, EventEncoder, FieldTokens, candidate_field
from kunlun.layers.gdpa import GDPA, Context, GDPAConfig, PersonalizedBlock
from kunlun.layers.pooling import HSP, MeanPooling, SumKronLinear
from kunlun.layers.rote import Rote, RoteConfig
from kunlun.layers.wukong import LinearMix, WukongConfig, WukongExpert, WukongExperts
from tests.support import NOW, jagged, toy_batch, toy_schema

MINUTE, HOUR, DAY, MONTH = 60, 3600, 86_400, 30 * 86_400


@pytest.mark.parametrize("head_width", [4, 8, 16, 32, 128])
def test_rote_tells_a_minute_an_hour_a_day_and_a_month_apart(head_width):
    rote = Rote(head_width, RoteConfig())
    ages = torch.tensor([0, MINUTE, HOUR, DAY, MONTH])
    one_each = jagged(torch.zeros(5, 1), torch.ones(5, dtype=torch.long))
    rotation = rote(one_each, NOW - ages, torch.full((5,), NOW))
    angle = rotation.log_time[:, None] * rotation.phi
    for i in range(5):
        for j in range(i):
            apart = (angle[i] - angle[j]).remainder(2 * math.pi)
            assert torch.minimum(apart, 2 * math.pi - apart).max() > 0.5, (i, j)


def test_rote_takes_differences_before_any_float():
    """At float32 a unix time steps by 128 s: 20 s and 50 s would be the same."""
    rote = Rote(4, RoteConfig())
    pair = jagged(torch.zeros(2, 1), torch.tensor([2]))
    rotation = rote(pair, torch.tensor([NOW - 50, NOW - 20]), torch.tensor([NOW]))
    torch.testing.assert_close(rotation.log_time, torch.log1p(torch.tensor([50.0, 20.0]) / 60))
    assert rotation.position.tolist() == [2, 1]


def test_rote_gaps_start_anew_in_every_sequence():
    rote = Rote(4, RoteConfig(delta="adjacent"))
    two = jagged(torch.zeros(4, 1), torch.tensor([2, 0, 2]))
    rotation = rote(two, torch.tensor([100, 160, 500, 1100]), torch.tensor([NOW] * 3))
    torch.testing.assert_close(rotation.log_time, torch.log1p(torch.tensor([0.0, 60, 0, 600]) / 60))


def test_rote_without_times_or_by_position_has_no_time():
    sequence, times = jagged(torch.zeros(2, 1), torch.tensor([2])), torch.tensor([1, 2])
    assert Rote(4, RoteConfig())(sequence, None, None).log_time is None
    assert Rote(4, RoteConfig(mode="position"))(sequence, times, torch.tensor([9])).log_time is None


@pytest.mark.parametrize(("s", "m", "d", "k"), [(5, 2, 3, 1), (7, 3, 4, 4)])
def test_sum_kron_linear_is_a_sum_of_kronecker_products(s, m, d, k):
    layer = SumKronLinear(s, m, d, k).double()
    h = torch.randn(2, s, d, dtype=torch.float64)
    dense = sum(torch.kron(layer.tokens_map[i].T.contiguous(), layer.width_map[i].T.contiguous()) for i in range(k))
    torch.testing.assert_close(layer(h).flatten(1), h.flatten(1) @ dense.T)
    assert sum(p.numel() for p in layer.parameters()) == k * (s * m + d * d)


def test_sum_kron_linear_at_the_papers_sizes():
    layer = SumKronLinear(256, 32, 384, 8)
    assert sum(p.numel() for p in layer.parameters()) == 1_245_184
    assert 256 * 32 * 384**2 == 1_207_959_552  # a full map


def test_mean_pooling_and_hsp_of_an_empty_sequence():
    sequence = jagged(torch.randn(3, 8), torch.tensor([2, 0, 1]))
    mean = MeanPooling(8, 2, 4)(sequence, None)
    torch.testing.assert_close(
        mean[:, 0], torch.stack([sequence.values[:2].mean(0), torch.zeros(8), sequence.values[2]])
    )
    pool = HSP(8, 2, 2, seeds=4, rank=2)
    expected = pool.compress(pool.attention.out.bias.expand(1, 4, 8))
    torch.testing.assert_close(pool(sequence, None)[1:2], expected)


def test_gdpa_block_is_the_formula():
    torch.manual_seed(0)
    config = GDPAConfig(kv_tokens=5, activation=["gelu", "silu"])
    inner = GDPA(3, 6, 8, 2, max_length=50, candidate=True, config=config)
    block = PersonalizedBlock(inner, 8).double()
    sequence = jagged(torch.randn(7, 8, dtype=torch.float64), torch.tensor([3, 4]))
    context = Context(torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64))
    out = block(sequence, context).values
    c = inner.context
    for b, (start, end) in enumerate([(0, 3), (3, 7)]):
        z = torch.cat([context.summary[b] @ c.project.weight.T, context.candidate[b : b + 1]])
        z = z / (z.square().mean(1, keepdim=True) + 1e-6).sqrt() * c.norm.weight
        k, v = c.keys.weight @ z, c.values.weight @ z / 5**0.5
        q = nn.functional.layer_norm(sequence.values[start:end], (8,), block.norm.weight, block.norm.bias)
        heads = []
        for h, act in enumerate([nn.functional.gelu, nn.functional.silu]):
            part = slice(4 * h, 4 * h + 4)
            heads.append(act(q[:, part] @ (k[:, part] * c.gain[h]).T / 50) @ v[:, part])
        g = torch.cat(heads, 1) + q
        expected = sequence.values[start:end] + g / (g.square().mean(1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(out[start:end], expected)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("max_length", [10, 1000])
def test_scores_start_at_unit_size_whatever_tau_is(position, max_length):
    torch.manual_seed(0)
    layer = GDPA(8, 16, 32, 2, max_length, False, GDPAConfig(kv_tokens=64, tau_position=position))
    k, _ = layer.context(torch.randn(64, 8, 16), None)
    q = nn.functional.layer_norm(torch.randn(64, 2, 1, 16), (16,))
    scores = (q * k.transpose(1, 2)).sum(-1) / (layer.tau if position == "pre" else 1)
    assert 0.5 < scores.std() < 2


def test_gate_and_candidate_field():
    gate, x = Gate(4), torch.randn(3, 4)
    expected = x * torch.sigmoid(gate.out(torch.relu(gate.hidden(x))))
    torch.testing.assert_close(gate(x), expected)
    sparse = (SparseField("ad_brand", "brand"), SparseField("brand", "brand"), SparseField("user", "user"))
    assert candidate_field(SparseField("brand", "brand"), sparse) == 1
    assert candidate_field(SparseField("maker", "brand"), sparse) == 0
    assert candidate_field(SparseField("shop", "shop"), sparse) is None


def test_without_the_candidates_fields_the_context_alone_makes_keys():
    layer = ContextKeyValue(3, 6, 5, 8, 2, gain=1.0, candidate=False)
    k, v = layer(torch.randn(2, 3, 6), None)
    assert k.shape == v.shape == (2, 5, 2, 4)


def test_a_quarter_of_the_keys_begins_as_the_candidate_alone():
    layer = ContextKeyValue(3, 6, 9, 8, 2, gain=2.0, candidate=True)
    candidate = torch.randn(2, 8)
    k, _ = layer(torch.randn(2, 3, 6), candidate)
    alone = 2 * layer.norm(candidate)[:, None].expand(2, 3, 8)
    torch.testing.assert_close(k[:, :3].flatten(2), alone)
    assert not torch.isclose(k[:, 3:].flatten(2), alone[:, :1]).any()


def test_events_of_other_ids_begin_unlike():
    """What a match by dot product stands out from: normalised, the same event has 1."""
    schema = toy_schema()
    tables = EmbeddingTables(schema, EmbeddingConfig(width=64, init_std=0.3))
    encoder = EventEncoder(schema.events[0], schema, tables, 32)
    ids = torch.stack([torch.arange(20, 84), torch.arange(64) % 20, torch.zeros(64, dtype=torch.long)], dim=1)
    encoded = F.layer_norm(encoder.encode_candidate(ids, tables), (32,))
    likeness = encoded @ encoded.T / 32
    assert likeness[~torch.eye(64, dtype=torch.bool)].mean().abs() < 0.15


def test_attention_begins_local_whatever_the_events():
    layer = SelfAttention(8, 1, None)
    layer.norm, layer.out = nn.Identity(), nn.Identity()
    with torch.no_grad():
        layer.qkv.weight.zero_()[16:] = torch.eye(8)
    events = jagged(torch.eye(8), torch.tensor([8]))
    rotation = Rote(8, RoteConfig(mode="position"))(events, None, None)
    weights = layer(events, rotation).values - torch.eye(8)  # of one-hot values: what each event takes from the others
    torch.testing.assert_close(weights.sum(1), torch.ones(8))
    torch.testing.assert_close(weights[0, :4], weights[7].flip(0)[:4])
    assert (weights[0, :3] > 1.01 * weights[0, 1:4]).all()


def test_tables_share_rows_between_the_candidate_and_events():
    schema = toy_schema()
    tables = EmbeddingTables(schema, EmbeddingConfig(width=4, widths={"shop": 6}))
    ids = torch.tensor([[7, 3, 1], [199, 19, 4]])
    item, shop, device = tables(schema.sparse, ids)
    torch.testing.assert_close(item, tables.weight("item")[ids[:, 0]])
    torch.testing.assert_close(shop, tables.weight("shop")[ids[:, 1]])
    torch.testing.assert_close(device, tables.weight("device")[ids[:, 2]])
    assert tables(schema.events[0].fields, ids[:, :2])[0].tolist() == item.tolist()
    item.sum().backward()
    grad = tables.by_width["4"].weight.grad
    assert grad.is_sparse
    assert grad.to_dense().any(1).nonzero().flatten().tolist() == [7, 199]
    with pytest.raises(ValueError, match=r"no table \['shap'\]"):
        EmbeddingTables(schema, EmbeddingConfig(widths={"shap": 3}))


def test_sharded_tables_need_torchrec_and_take_no_memory_before_they_are_sharded(monkeypatch):
    monkeypatch.setattr("kunlun.layers.embedding.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="TorchRec is not installed; `make torchrec` installs it"):
        EmbeddingConfig(sharded=True)
    monkeypatch.setattr("kunlun.layers.embedding.find_spec", lambda name: object())
    with pytest.raises(ValueError, match="widths that 4 divides"):
        EmbeddingConfig(width=6, sharded=True)
    tables = EmbeddingTables(toy_schema(), EmbeddingConfig(width=4, sharded=True))
    assert all(p.is_meta for p in tables.parameters())


def test_gradients_of_tables_are_sparse_unless_told_otherwise():
    schema, batch = toy_schema(), toy_batch(toy_schema(), 5, torch.Generator().manual_seed(0))
    grads = []
    for sparse in (True, False):
        torch.manual_seed(0)
        tables = EmbeddingTables(schema, EmbeddingConfig(width=4, sparse_gradients=sparse))
        torch.cat(tables(schema.sparse, batch.sparse)).square().sum().backward()
        grads.append(tables.by_width["4"].weight.grad)
    assert [g.is_sparse for g in grads] == [True, False]
    torch.testing.assert_close(grads[0].to_dense(), grads[1])


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_multi_valued_fields_are_pooled_to_one_token(pooling):
    schema = replace(
        toy_schema(events=()), bags=(BagField("tags", "tag", pooling),), tables={**toy_schema().tables, "tag": Table(9)}
    )
    tables = EmbeddingTables(schema, EmbeddingConfig(width=4))
    tokens = FieldTokens(schema, tables, 8)
    bag = jagged(torch.tensor([2, 3, 3]), torch.tensor([2, 0, 1]))
    batch = replace(toy_batch(schema, 3, torch.Generator().manual_seed(0)), bags={"tags": bag})
    x = tokens(batch, tables)
    assert x.shape == (3, 5, 8)  # three fields, the bag, the dense token
    rows = tables.weight("tag")
    both = rows[2] + rows[3]
    pooled = torch.stack([both / 2 if pooling == "mean" else both, torch.zeros(4), rows[3]])
    torch.testing.assert_close(x[:, 3], pooled @ tokens.weights["4"][3] + tokens.bias[3])


def test_wukong_expert_is_the_formula():
    torch.manual_seed(0)
    expert = WukongExpert(5, 4, 6, WukongConfig(experts=1, tokens=4, rank=2, hidden=7)).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    machine = (x @ x.transpose(1, 2) @ expert.project).flatten(1)
    machine = expert.out(torch.relu(expert.hidden(expert.norm(machine)))).view(3, 2, 6)
    linear = torch.einsum("mn,bnd->bmd", expert.linear.weight, x)
    residual = torch.einsum("mn,bnd->bmd", expert.residual.weight, x)
    torch.testing.assert_close(expert(x), expert.out_norm(torch.cat([machine, linear], 1) + residual))


def test_experts_see_interleaved_partitions():
    experts = WukongExperts(5, 6, WukongConfig(experts=2, tokens=8, rank=2, hidden=7))
    x = torch.randn(2, 5, 6)
    out = experts(x)
    x[:, 1::2] += 1
    torch.testing.assert_close(experts(x)[:, :4], out[:, :4])
    assert not torch.allclose(experts(x)[:, 4:], out[:, 4:])
    with pytest.raises(ValueError, match="3 experts cannot share 2 tokens"):
        WukongExperts(2, 6, WukongConfig(experts=3, tokens=6))


def test_linear_mix_is_linear_along_the_tokens_up_to_its_norm():
    mix = LinearMix(5, 6, WukongConfig(experts=1, tokens=4))
    x = torch.randn(3, 5, 6)
    expected = F.layer_norm(torch.einsum("mn,bnd->bmd", mix.mix.weight, x), (6,))
    torch.testing.assert_close(mix(x), expected)
