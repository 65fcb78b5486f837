"""Every shipped configuration is parsed and trained for one step."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from torch import nn

import kunlun.training.cli  # noqa: F401  # lets a schema be no option
from data import SyntheticData
from kunlun.configuration import load_configs
from kunlun.features import Jagged
from kunlun.training.module import CTRModule
from tests.conftest import ROOT

EXPERIMENTS = {"matrix", "scaling"}  # sections of what is no run by itself
CONFIGS = sorted(
    p.relative_to(ROOT / "configs")
    for p in (ROOT / "configs").rglob("*.yaml")
    if not EXPERIMENTS & set(yaml.safe_load(p.read_text()))
)
ABLATIONS = [c for c in CONFIGS if c.parts[0] == "ablations"]
EXPECTED = {
    *("kunlun", "no_gdpa", "no_hsp", "no_window", "no_compskip", "no_event_personalization", "no_rote", "two_experts"),
    *("unfused_gdpa", "drop_gdpa", "drop_attention", "drop_hsp", "drop_wukong", "drop_event_types", "uniform_events"),
}
BASELINES = {"interformer", "hstu", "wukong", "din", "dien", "dcnv2", "dlrm", "logistic_regression"}
SMALL = [
    "--data.batch_size=8",
    "--data.eval_batch_size=8",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
]
QUIET = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]


def fit(*configs: Path, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    options = [option for config in configs for option in ("--config", str(config))]
    command = [sys.executable, str(ROOT / "cli.py"), "fit", *options, *SMALL, *QUIET, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_every_ablation_is_there_and_is_a_diff_of_a_few_lines():
    assert {c.stem for c in ABLATIONS} >= EXPECTED | BASELINES
    for config in ABLATIONS:
        text = (ROOT / "configs" / config).read_text()
        assert text.startswith("# "), config
        # Another model takes nothing from the base model, so its diff holds its own sizes.
        other = "class_path" in yaml.safe_load(text).get("model", {})
        assert other == (config.stem in BASELINES)
        assert len(text.splitlines()) <= (12 if other else 6), config
        assert yaml.safe_load(text)["run"]["name"] == config.stem


def model_of(config: Path) -> nn.Module:
    """On the data of the base config."""
    merged = yaml.safe_load(load_configs([str(config)]).dump())
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    parser.add_subclass_arguments(nn.Module, "model")
    parser.link_arguments("data.schema", "model.init_args.schema", apply_on="instantiate")
    return parser.instantiate(parser.parse_object({key: merged[key] for key in ("data", "model")})).model


def test_baselines_are_about_as_large_as_kunlun():
    """Within a factor of two, in FLOPs at the data's mean lengths or else in parameters outside the tables."""

    def sizes(name: str) -> tuple[int, int]:
        model = model_of(Path("ablations") / f"{name}.yaml")
        flops = sum(model.flops({e.name: round(e.mean_length) for e in model.schema.events}).values())
        return flops, sum(p.numel() for n, p in model.named_parameters() if "by_width" not in n)

    kunlun = sizes("kunlun")
    for name in BASELINES - {"logistic_regression"}:
        ratios = [ours / full for ours, full in zip(sizes(name), kunlun, strict=True)]
        assert any(0.5 <= ratio <= 2 for ratio in ratios), (name, ratios)


@pytest.mark.parametrize("config", ABLATIONS, ids=str)
def test_every_parameter_has_a_gradient(config):
    """Data-parallel training waits for all of them, also where a batch has no event at all."""
    module = CTRModule(model_of(config))
    batch = SyntheticData().split("train").__getitems__(np.arange(4))
    nothing = {
        event: {name: Jagged(x.values[:0], torch.zeros_like(x.offsets), 0) for name, x in columns.items()}
        for event, columns in batch.events.items()
    }
    for rows in (batch, replace(batch, events=nothing)):
        module.zero_grad()
        module._loss(module(rows), rows).backward()
        assert [name for name, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.parts[0] != "data"], ids=str)
def test_trains_for_a_step(config):
    result = fit(config)
    assert result.returncode == 0, result.stderr
    assert "NE" in result.stdout


@pytest.mark.parametrize("name", ["criteo", "userbehavior", "taobao_x1"])
def test_data_configs_train_for_a_step(name, sample_data, tmp_path):
    raw = {
        "criteo": "criteo_1tb_day0_10k.tsv.gz",
        "userbehavior": "taobao_userbehavior.csv.gz",
        "taobao_x1": "taobao_ad_x1_sample.csv.gz",
    }[name]
    prepare = [sys.executable, str(ROOT / "cli.py"), "prepare", name.replace("_", "-")]
    out = tmp_path / "prepared"
    subprocess.run([*prepare, "--raw", str(sample_data / raw), "--out", str(out)], check=True, capture_output=True)
    for more in ([], [Path("ablations/drop_hsp.yaml")]):
        result = fit(Path("data") / f"{name}.yaml", *more, more=(f"--data.path={out}",))
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["taobao", "criteo_x1", "criteo_x4"])
def test_data_configs_train_on_generated_files(name, tmp_path):
    layout, raw, out = name.replace("_", "-"), tmp_path / "raw", tmp_path / "prepared"
    size = ["--impressions", "500", "--events", "5000"] if name == "taobao" else ["--rows", "500"]
    for command in (["generate", layout, "--out", raw, *size], ["prepare", layout, "--raw", raw, "--out", out]):
        subprocess.run([sys.executable, ROOT / "cli.py", *command], check=True, capture_output=True)
    base = [] if name == "taobao" else [Path("data/criteo.yaml")]
    result = fit(*base, Path("data") / f"{name}.yaml", more=(f"--data.path={out}",))
    assert result.returncode == 0, result.stderr


def test_the_papers_sizes_are_those_of_the_base_model():
    """The published example: S 256, M 32, k 8; click (256, 8, 32, 3, 100), impression (128, 4, 16, 2, 50)."""
    from data import SyntheticData
    from kunlun.models.kunlun import HSPConfig, Kunlun, TowerConfig

    values = yaml.safe_load((ROOT / "configs/models/base.yaml").read_text())["model"]["init_args"]
    towers = {k: TowerConfig(**v) for k, v in values["towers"].items() if v}
    with torch.device("meta"):
        model = Kunlun(
            SyntheticData().schema, values["width"], values["layers"], towers=towers, hsp=HSPConfig(**values["hsp"])
        )
    assert model.towers["click"].config == TowerConfig(256, 8, 32, 3, 100)
    assert model.towers["impression"].config == TowerConfig(128, 4, 16, 2, 50)
    assert model.towers["click"].pool[0].compress.tokens_map.shape == (8, 256, 32)
