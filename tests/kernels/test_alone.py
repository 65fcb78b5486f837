"""The kernels need nothing of the project but their own folder."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.docs.test_readme import BLOCKS, ROOT


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_the_readmes_example_runs_beside_a_copy_of_the_folder(tmp_path, interpret):
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    check = "import sys, kernels\nassert kernels.__file__.startswith(sys.argv[1])\nassert 'kunlun' not in sys.modules\n"
    subprocess.run(
        [sys.executable, "-c", code + check, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": interpret, "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=120,
    )
