"""The logged score sizes are those of the scores."""

from __future__ import annotations

import pytest
import torch

from kunlun.layers.gdpa import GDPA, Context, GDPAConfig
from kunlun.models.kunlun import Kunlun
from kunlun.training.module import CTRModule
from kunlun.training.score_monitor import ScoreMonitor
from tests.support import jagged, spans, toy_schema
from tests.training.test_module import Toy, trainer


@pytest.mark.parametrize("position", ["pre", "post"])
def test_score_std_is_that_of_the_enumerated_scores(position):
    torch.manual_seed(0)
    layer = GDPA(3, 6, 8, 2, 20, False, GDPAConfig(kv_tokens=5, tau_position=position))
    sequence = jagged(torch.randn(7, 8), torch.tensor([3, 0, 4]))
    context = Context(torch.randn(3, 3, 6), None)
    k, _ = layer.context(context.summary, None)
    for head, std in enumerate(layer.score_std(sequence, context)):
        part = slice(4 * head, 4 * head + 4)
        scores = [sequence.values[a:b, part] @ k[i, :, head].T for i, (a, b) in enumerate(spans(sequence.offsets))]
        scores = torch.cat(scores) / (20 if position == "pre" else 1)
        torch.testing.assert_close(std, scores.std())


def test_every_head_of_every_gdpa_is_logged_once_per_validation():
    schema = toy_schema()
    run = trainer(max_epochs=1, callbacks=[ScoreMonitor()])
    run.fit(CTRModule(Kunlun(schema)), Toy(schema))
    logged = {k: v for k, v in run.callback_metrics.items() if k.startswith("scores/")}
    assert set(logged) == {f"scores/towers.{t}.pffn.0/head{h}" for t in ("view", "buy") for h in (0, 1)}
    assert all(0.05 < float(v) < 20 for v in logged.values())
