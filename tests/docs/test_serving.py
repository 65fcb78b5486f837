"""docs/serving.md, run as it stands: its commands, then its Python, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
SHORT = [
    "--config",
    "models/tiny",
    "--trainer.max_epochs",
    "1",
    "--trainer.limit_train_batches",
    "2",
    "--trainer.limit_val_batches",
    "1",
]


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_and_the_code_of_the_page(tmp_path: Path) -> None:
    (commands,) = [text.splitlines() for language, text in BLOCKS if language == "bash"]
    code = "\n".join(text for language, text in BLOCKS if language == "python")
    assert [command.split()[2] for command in commands] == ["fit", "export"]
    for command in commands:
        more = SHORT if " fit " in command else []
        run([sys.executable, str(ROOT / "cli.py"), *command.split()[2:], *more], tmp_path)
    (tmp_path / "serve.py").write_text(code, encoding="utf-8")
    values = [float(found) for found in re.findall(r"0\.\d+", run([sys.executable, "serve.py"], tmp_path))]
    assert len(values) == 2
    assert all(0 < value < 1 for value in values)
    files = {path.name for path in (tmp_path / "exported/kunlun").iterdir()}
    assert files == set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE))
