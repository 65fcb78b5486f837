"""The matrix as a W&B sweep, for those who have agents: ``wandb sweep sweep.yaml``, then ``wandb agent ID``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kunlun.configuration import dump_yaml
from kunlun.experiments.matrix import Matrix

HEAD = """\
# Every cell of the matrix {name} as one run of a sweep: `wandb sweep` this file in the project's folder, then
# `wandb agent` on any machine. Agents make runs; the table is made by `python cli.py ablate`, which has its own cells.
"""


def sweep(matrix: Matrix, configs: dict[str, Path]) -> str:
    """YAML of a grid over variants and seeds that runs ``cli.py fit`` as the matrix does.

    ``configs``: the whole configuration of each variant, by its name.
    """
    o = matrix.options
    last = [f"--run.group={o.name}", f"--run.test={str(o.split == 'test').lower()}", *matrix.reference.extra]
    values: dict[str, Any] = {
        "program": "cli.py",
        "method": "grid",
        "name": o.name,
        "metric": {"name": f"{o.split}/ne", "goal": "minimize"},
        "command": ["${env}", "${interpreter}", "${program}", "fit", "${args}", *last],
        "parameters": {
            "config": {"values": [str(configs[variant.name]) for variant in matrix.variants]},
            "seed_everything": {"values": o.seed_list},
        },
    }
    return HEAD.format(name=o.name) + dump_yaml(values)
