"""The README's code runs, and each of its commands is one that the command line accepts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line.startswith("python")]
SAMPLES = {
    "train.txt": "criteo_kaggle_110k.tsv.gz",
    "UserBehavior.csv": "taobao_userbehavior.csv.gz",
    "TaobaoAd_x1": "taobao_ad_x1_sample.csv.gz",
}
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
FEW_CELLS = ["--variants=[kunlun, logistic_regression]", "--seeds=1", "--rounds=0", "--data.preset=tiny", *SHORT]
QUIET = ["--run.wandb=disabled", "--trainer.enable_progress_bar=false"]


def test_the_python_of_the_readme_runs():
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    exec(compile(code, "README.md", "exec"), {})


def test_the_flops_of_the_readme_are_those_that_were_counted():
    found = json.loads((ROOT / "benchmarks/results/paper_flops.json").read_text())
    assert f"full Kunlun's {found['flops_per_sample'] / 1e9:.2f} GFLOPs per sample" in TEXT
    names = {"window": "window", "compskip": "CompSkip", "event_personalization": "event personalization"}
    for component, saving in found["savings"].items():
        cells = [f"{100 * saving[key]:+.1f}".replace("-", "−") for key in ("change", "published", "residual")]
        assert f"| {names[component]} | {cells[0]} % | {cells[1]} % | {cells[2]} |" in TEXT
    assert len(found["savings"]) == len(names)


@pytest.mark.slow
def test_every_command_of_the_readme_in_its_order(sample_data, tmp_path):
    """On the sample rows under the names the README uses, and with few steps."""
    assert len(COMMANDS) >= 10
    for name, sample in SAMPLES.items():
        (tmp_path / f"{name}{sample[sample.index('.') :]}").symlink_to(sample_data / sample)
    for command in COMMANDS:
        arguments = shlex.split(command)[2:]
        if arguments[0] == "generate":
            arguments += ["--impressions=500", "--events=5000"]
        if arguments[0] == "prepare" and (raw := arguments[arguments.index("--raw") + 1]) in SAMPLES:
            arguments[arguments.index("--raw") + 1] = raw + SAMPLES[raw][SAMPLES[raw].index(".") :]
        if arguments[0] == "ablate":
            arguments += FEW_CELLS
        if arguments[0] == "fit":
            arguments += SHORT + QUIET
        result = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    assert (tmp_path / "predictions.parquet").is_file()
