"""The share of the achievable gain: right for models whose loss is known, logged per evaluation, and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from data.module import PreparedData, SyntheticData
from data.synthetic_config import PARTS
from kunlun.features import Batch, FeatureSchema
from kunlun.training.module import CTRModule
from kunlun.training.oracle import OracleShare, known_answer

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
ROWS = {"valid": 8_192, "test": 8_192}


class Fixed(nn.Module):
    """Predicts the true probability of the click moved towards the rate: 1 is the oracle, 0 knows the rate only."""

    def __init__(self, data: SyntheticData, weight: float) -> None:
        super().__init__()
        self.schema: FeatureSchema = data.schema
        self.data, self.weight = data, weight
        self.unused = nn.Parameter(torch.zeros(1))
        self.split = "valid"

    def forward(self, batch: Batch) -> Tensor:
        rates = torch.tensor([task.train_rate for task in self.schema.tasks], dtype=torch.float64)
        p, _ = self.data.truth(self.split, batch.row)
        mixed = self.weight * p + (1 - self.weight) * rates
        return torch.logit(mixed) + 0.0 * self.unused


def evaluate(data: SyntheticData, weight: float, command: str = "validate") -> dict[str, float]:
    model = Fixed(data, weight)
    model.split = {"validate": "valid", "test": "test"}[command]
    trainer = L.Trainer(accelerator="cpu", **QUIET, callbacks=known_answer(data))
    return getattr(trainer, command)(CTRModule(model), datamodule=data, verbose=False)[0]


@pytest.fixture(scope="module")
def data() -> SyntheticData:
    return SyntheticData("tiny", tasks=["click", "conversion"])


@pytest.mark.parametrize(("command", "split"), [("validate", "valid"), ("test", "test")])
def test_the_oracle_has_all_of_the_gain_and_the_rate_none(data: SyntheticData, command: str, split: str) -> None:
    for weight, share in ((1.0, 1.0), (0.0, 0.0)):
        found = evaluate(data, weight, command)
        assert found[f"{split}/oracle_share"] == pytest.approx(share, abs=1e-5)
        assert found[f"{split}/conversion/oracle_share"] == pytest.approx(share, abs=1e-5)
    best = evaluate(data, 1.0, command)
    assert best[f"{split}/oracle_ne"] == pytest.approx(best[f"{split}/ne"], abs=1e-6)
    assert best[f"{split}/conversion/oracle_ne"] == pytest.approx(best[f"{split}/conversion/ne"], abs=1e-6)


def test_the_share_is_that_of_the_formula_on_the_same_labels(data: SyntheticData) -> None:
    found = evaluate(data, 0.5)
    batch = data.split("valid").__getitems__(torch.arange(ROWS["valid"]).numpy())
    p, labels = data.truth("valid", batch.row)[0][:, 0], batch.labels[:, 0].double()

    def loss(q: Tensor) -> float:
        return float(nn.functional.binary_cross_entropy(q, labels))

    rate = torch.full_like(p, 0.25)
    expected = (loss(rate) - loss((p + rate) / 2)) / (loss(rate) - loss(p))
    assert 0.5 < expected < 0.95
    assert found["valid/oracle_share"] == pytest.approx(expected, abs=1e-5)


def test_nothing_to_gain_has_no_share() -> None:
    assert math.isnan(evaluate(SyntheticData("tiny", label_noise=1.0), 1.0)["valid/oracle_share"])


def test_the_truth_is_computed_once_per_split(
    data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fit of two epochs; and what the oracle can expect is printed and logged once."""
    asked: list[int] = []
    plain = SyntheticData("tiny", train_rows=256, batch_size=128, eval_batch_size=4_096)
    true = plain.world.parts

    def counted(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return true(rows)

    callback = OracleShare(plain)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(tmp_path, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        use_distributed_sampler=False,
    )
    model = Fixed(plain, 0.5)
    monkeypatch.setattr(plain.world, "parts", counted)
    model.data = SyntheticData("tiny")
    trainer.fit(CTRModule(model), datamodule=plain)
    assert asked == [8_192, 4_096, 4_096]  # for the line, then each batch of valid once
    assert "valid/oracle_share" in trainer.callback_metrics
    assert capsys.readouterr().out.count("oracle: NE 0.72") == 1
    logged = (tmp_path / "hparams.yaml").read_text()
    assert "oracle/ne: 0.72" in logged
    assert "oracle/gain/recency: " in logged


def test_other_data_have_no_such_callback() -> None:
    assert known_answer(PreparedData("nowhere")) == []
    assert known_answer(object()) == []


class OfParts(Fixed):
    """Knows the parts named in ``known`` as they are, and nothing of the others."""

    def __init__(self, data: SyntheticData, known: dict[str, float]) -> None:
        super().__init__(data, 1.0)
        strengths = data.config.strengths.by_part()
        self.slopes = torch.tensor([known.get(part, 0.0) * strengths[part] for part in data.parts]).double()

    def forward(self, batch: Batch) -> Tensor:
        return (self.data.truth(self.split, batch.row)[1] @ self.slopes - 1.5)[:, None] + 0.0 * self.unused


def test_what_is_learnt_of_each_part_is_its_slope_over_the_true_one() -> None:
    data = SyntheticData("tiny", strengths={"memory": 0.0})
    assert data.parts == ("recency", "motif", "long_range", "context", "event_types", "crosses")
    known = {"recency": 1.0, "motif": 0.25, "event_types": 1.5}
    trainer = L.Trainer(accelerator="cpu", **QUIET, callbacks=known_answer(data))
    found = trainer.validate(CTRModule(OfParts(data, known)), datamodule=data, verbose=False)[0]
    for part in data.parts:
        assert found[f"valid/learnt/{part}"] == pytest.approx(known.get(part, 0.0), abs=1e-5)
    assert "valid/learnt/memory" not in found


def test_nothing_is_learnt_of_a_world_without_parts() -> None:
    data = SyntheticData("tiny", strengths=dict.fromkeys(PARTS, 0.0))
    assert not [name for name in evaluate(data, 1.0) if "learnt" in name]
