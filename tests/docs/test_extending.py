"""docs/extending.md, run as it stands: its files are written and its commands executed in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
SHORT = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--config", "models/tiny"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    for language, text in BLOCKS:
        if language in ("python", "yaml"):
            name = re.match(r"# (\S+)\n", text).group(1)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(command: str, folder: Path, *more: str) -> subprocess.CompletedProcess:
    assert command.startswith("python cli.py ")
    arguments = [sys.executable, str(ROOT / "cli.py"), *command.split()[2:], *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_every_command_of_the_page_trains_the_users_module(workplace):
    commands = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    assert len(commands) == 2
    for number, command in enumerate(commands):
        result = run(command, workplace, *SHORT)
        assert result.returncode == 0, result.stderr
        (saved,) = workplace.glob(f"runs/{['recent', 'recent_no_bias'][number]}/*/config.yaml")
        pooling = yaml.safe_load(saved.read_text())["model"]["init_args"]["pooling"]
        assert pooling["class_path"] == "my_package.recent.RecentEvents"
        assert pooling.get("init_args", {}).get("bias", True) is (number == 0)


def test_a_misspelt_option_of_the_users_class_is_refused(workplace):
    (workplace / "wrong.yaml").write_text((workplace / "no_bias.yaml").read_text().replace("bias:", "bais:"))
    result = run("python cli.py fit --config wrong.yaml", workplace)
    assert result.returncode == 2
    for named in ("wrong.yaml", "bais", "bias"):
        assert named in result.stderr
    assert not list(workplace.glob("runs/*wrong*"))
