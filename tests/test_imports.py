"""A file imports only what stands below it, and no installed package takes the place of ours."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each layer, lowest first, with the layers of the project that its files may import.
ALLOWED: dict[str, set[str]] = {
    "kernels": set(),
    "kunlun.features": set(),
    "kunlun.configuration": set(),
    "kunlun.checkpoints": {"kunlun.configuration"},
    "kunlun.command_line": {"kunlun.configuration", "kunlun.checkpoints"},
    "kunlun.config_check": {"kunlun.configuration"},
    "data": {"kunlun.features", "kunlun.configuration", "kunlun.config_check"},
    "kunlun.layers": {"kernels", "kunlun.features"},
    "kunlun.models": {"kernels", "kunlun.features", "kunlun.layers"},
    "kunlun.exported": {"kunlun.features", "kunlun.configuration", "kunlun.config_check"},
    "kunlun.program": {"kunlun.features", "kunlun.configuration"},
    "kunlun.training": {
        *("kernels", "kunlun.features", "kunlun.layers", "kunlun.models"),
        *("kunlun.configuration", "kunlun.command_line", "kunlun.config_check", "kunlun.checkpoints"),
        "kunlun.exported",
    },
}
ALLOWED["kunlun.experiments"] = {*ALLOWED["kunlun.training"], "kunlun.training"}
ALLOWED["cli"] = {*ALLOWED, "data"}


def layer_of(module: str) -> str | None:
    """The layer that ``module`` belongs to; None for libraries."""
    found = [layer for layer in ALLOWED if module == layer or module.startswith(f"{layer}.")]
    return max(found, key=len) if found else None


def modules() -> dict[str, Path]:
    files = [ROOT / "cli.py", *(f for top in ("kunlun", "kernels", "data") for f in sorted((ROOT / top).rglob("*.py")))]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(module: str, source: str, is_package: bool) -> list[tuple[str, int]]:
    """Every module that ``source`` imports, wherever it does, with the line."""
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            # `from kunlun import training` imports kunlun.training.
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return found


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    own = layer_of(module)
    if own is None:
        return [] if module == "kunlun" and not imports(module, source, is_package) else [f"{module}: in no layer"]
    wrong = []
    for name, line in imports(module, source, is_package):
        layer = layer_of(name)
        if layer is not None and layer != own and layer not in ALLOWED[own]:
            wrong.append(f"{module}:{line} imports {name}")
    return wrong


def test_imports_only_go_down() -> None:
    found = modules()
    assert {"cli", "kunlun.features", "kunlun.training.cli", "kernels", "data"} <= set(found)
    wrong = [
        violation
        for module, path in found.items()
        if module != "kunlun"
        for violation in violations(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kernels.gdpa", "from kunlun.features import Jagged"),
        ("kernels.gdpa", "def f():\n    import data.reader"),
        ("data.reader", "from kunlun.layers import gdpa"),
        ("data.reader", "from kunlun import layers"),
        ("kunlun.layers.gdpa", "import data"),
        ("kunlun.layers.gdpa", "from ..models import kunlun"),
        ("kunlun.models.kunlun", "from kunlun.training.module import CTRModule"),
        ("kunlun.training.module", "import kunlun.experiments"),
        ("kunlun.features", "import data"),
        ("kunlun.training.cli", "import cli"),
        ("kunlun.surprise", "import os"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kunlun.models.kunlun", "from kernels import Rotation"),
        ("kunlun.models.kunlun", "from kunlun.layers.gdpa import GDPA"),
        ("data.module", "from data.reader import Split\nimport torch"),
        ("kunlun.layers.gdpa", "from .attention import SelfAttention"),
        ("data.reader", "from datasets import load_from_disk"),
    ],
)
def test_a_downward_import_is_allowed(module: str, source: str) -> None:
    assert not violations(module, source)


def test_packages_are_cheap_to_import() -> None:
    code = "import sys, kunlun, data, kunlun.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A site directory with packages called like ours, such as Hugging Face's `kernels`."""
    for name in ("kernels", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    return tmp_path


@pytest.mark.parametrize("flags", [[], ["-P"]], ids=["", "safe path"])
def test_an_installed_package_cannot_shadow_ours(shadows: Path, tmp_path: Path, flags: list[str]) -> None:
    """Whether it is installed, or on PYTHONPATH, and wherever the command is run."""
    probe = tmp_path / "sitecustomize.py"
    probe.write_text(f"import site, sys\nsite.addsitedir({str(shadows)!r})\n")
    where = (
        "import runpy, sys; sys.argv = ['cli.py', '--help']\ntry: runpy.run_path(sys.argv[0])\nexcept SystemExit: pass"
    )
    code = f"{where}\nimport cli, kernels, data\nprint(kernels.__file__, data.__file__)"
    entry = tmp_path / "entry.py"
    entry.write_text(code.replace("'cli.py', '--help'", f"{str(ROOT / 'cli.py')!r}, '--help'"))
    environment = {**os.environ, "PYTHONPATH": str(shadows)}
    command = [sys.executable, *flags, str(entry)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = f"{ROOT / 'kernels/__init__.py'} {ROOT / 'data/__init__.py'}"
    assert done.stdout.splitlines()[-1] == expected


def test_the_shadows_would_win_otherwise(shadows: Path, tmp_path: Path) -> None:
    """The test above tests something: the same packages win where nothing puts ours first."""
    environment = {**os.environ, "PYTHONPATH": str(shadows)}
    command = [sys.executable, "-c", "import kernels"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "the wrong package" in done.stderr
