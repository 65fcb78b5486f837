"""docs/synthetic.md, run as it stands: its code, its commands, and the sizes and oracles of its table."""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.synthetic_parts import COMPONENTS, markdown
from data.synthetic import SyntheticWorld
from data.synthetic_config import PARTS
from data.synthetic_oracle import summarise
from data.synthetic_presets import PRESETS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "synthetic.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
FITS = [line for line in COMMANDS if " fit " in line]
SHORT = [
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"),
    *("--data.batch_size=8", "--data.eval_batch_size=8", "--trainer.logger=false"),
    *("--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false", "--config", "models/tiny"),
]


def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = [text for language, text in BLOCKS if language == "python"]
    assert len(code) == 1
    exec(compile(code[0], "docs/synthetic.md", "exec"), {})
    assert "OracleAUC(task='click'" in capsys.readouterr().out


def row(preset: str) -> list[str]:
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{preset}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_table_tells_the_sizes_of_each_preset(preset: str) -> None:
    config, cells = PRESETS[preset], row(preset)
    assert cells[2] == f"≤ {config.max_events:,}"
    assert cells[5] == f"{config.ctr:.0%}".replace("%", " %")
    powers = {"10⁹": 10**9, "7 · 10¹⁰": 7 * 10**10}
    assert powers.get(cells[4]) == config.train_rows or cells[4] == f"{config.train_rows:,}"


@pytest.mark.parametrize("preset", ["tiny", "small", "small_5pct"])
def test_the_table_tells_the_oracle_of_each_preset_that_is_small(preset: str) -> None:
    summary = summarise(SyntheticWorld(PRESETS[preset]))
    assert row(preset)[6:8] == [f"{summary.nes[0].ne:.3f}", f"{summary.aucs[0].auc:.3f}"]


def test_the_table_of_what_is_earned_is_the_one_that_was_measured() -> None:
    report = json.loads((ROOT / "benchmarks/results/cpu/synthetic_parts.json").read_text())
    assert markdown(report["results"]) in PAGE
    for found in report["results"]:
        up = found["strength"] > 0
        assert (found["behind"] > found["half_width_95"]) if up else (abs(found["behind"]) <= found["half_width_95"])
        assert found["seeds"] == (5 if up else 3)
    assert {found["part"] for found in report["results"]} == set(COMPONENTS)


def test_models_come_in_the_order_that_was_measured() -> None:
    report = json.loads((ROOT / "benchmarks/results/cpu/synthetic_order.json").read_text())
    figures = {v["name"]: [cell["metrics"] for cell in v["cells"]] for v in report["variants"]}
    for name, cells in figures.items():
        ne, share = (statistics.fmean(cell[key] for cell in cells) for key in ("ne", "oracle_share"))
        assert f"| `{name}` | {ne:.3f} | {100 * share:.0f} % |" in PAGE
    learnt = {name: [cell[f"learnt/{name}"] for cell in figures["kunlun"]] for name in PARTS}
    told = re.findall(r"([\d.]+) of (recency|long_range|motif|crosses|memory)\b", " ".join(PAGE.split()))
    assert [(part, share) for share, part in told] == [
        (part, f"{statistics.fmean(learnt[part]):.2f}")
        for part in ("recency", "long_range", "motif", "crosses", "memory")
    ]
    for full, din, logistic in zip(*(figures[n] for n in ("kunlun", "din", "logistic_regression")), strict=True):
        assert full["oracle_ne"] < full["ne"] < din["ne"] < logistic["ne"]


def test_the_commands_are_those_that_there_are() -> None:
    assert len(FITS) == 3
    assert len(COMMANDS) == 6


@pytest.mark.slow
@pytest.mark.parametrize("command", FITS)
def test_its_trainings_start(command: str, tmp_path: Path) -> None:
    arguments = [sys.executable, str(ROOT / "cli.py"), *shlex.split(command)[2:], *SHORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "oracle: " in done.stdout


def test_its_inspection_runs(tmp_path: Path) -> None:
    command = next(line for line in COMMANDS if " inspect " in line).replace("20000", "500")
    arguments = [sys.executable, str(ROOT / "cli.py"), *shlex.split(command)[2:]]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 100_000
