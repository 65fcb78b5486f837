"""The reading of the command line: everything that happens before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kunlun.command_line import apply_class_overrides, apply_values, find_checkpoint, read_request, split_arguments
from kunlun.configuration import CONFIG_ROOT, PROJECT_ROOT, ConfigError, ConfigTree, Text


@pytest.fixture
def tree() -> ConfigTree:
    return ConfigTree(
        {
            "model": {"class_path": "m.Full", "init_args": {"width": 8, "parts": {"a": True}}},
            "trainer": {"callbacks": [{"class_path": "c.C"}]},
            "run": {"name": "base"},
        }
    )


def test_arguments_split_into_configs_and_overrides() -> None:
    configs, overrides = split_arguments(
        ["--config", "a", "--x.y", "-3", "-c=b", "--print_config", "--z=p=q", "--config=c"]
    )
    assert configs == ["a", "b", "c"]
    assert [(o.key, o.value) for o in overrides] == [("x.y", "-3"), ("print_config", None), ("z", "p=q")]
    assert overrides[0].tokens == ("--x.y", "-3")


@pytest.mark.parametrize(("token", "told"), [("mine.yaml", "--config mine.yaml"), ("fast", "--key value")])
def test_a_stray_argument_is_refused_with_a_hint(token: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        split_arguments([token])


@pytest.mark.parametrize("argv", [["--config"], ["--config", "--x=1"], ["--config="]])
def test_config_needs_a_name(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match="--config needs"):
        split_arguments(argv)


@pytest.mark.parametrize("argument", ["--model=m.Other", "--model.class_path=m.Other", "--model=Other"])
def test_a_class_of_the_command_line_drops_the_old_arguments(tree: ConfigTree, argument: str) -> None:
    _, overrides = split_arguments([argument, "--run.name=x"])
    rest = apply_class_overrides(tree, overrides)
    assert tree.values["model"] == {"class_path": "m.Other"}
    assert [o.key for o in rest] == ["run.name"]


def test_values_go_into_the_tree_and_lists_are_left_alone(tree: ConfigTree) -> None:
    arguments = ["--model.width=9", "--model.parts={a: false}", "--run.name", "7", "--output=x", "--print_config"]
    lists = ["--trainer.callbacks.every=3", "--trainer.loggers+=c.D", "--trainer.loggers.key=1"]
    rest = apply_values(tree, split_arguments([*arguments, *lists])[1], own=("output",))
    assert tree.values["model"]["init_args"] == {"width": "9", "parts": {"a": False}}
    assert isinstance(tree.values["model"]["init_args"]["width"], Text)
    assert tree.where("model.init_args.width") == "command line"
    left = ["output", "print_config", "trainer.callbacks.every", "trainer.loggers+", "trainer.loggers.key"]
    assert [o.key for o in rest] == left


def test_a_value_has_no_parts(tree: ConfigTree) -> None:
    with pytest.raises(ConfigError, match=r"run\.name: 'base' has no 'first'"):
        apply_values(tree, split_arguments(["--run.name.first=x"])[1], own=())


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_needs_a_checkpoint(command: str) -> None:
    with pytest.raises(ConfigError, match=f"cli.py {command} --ckpt_path"):
        read_request(command, [])


def test_a_checkpoint_brings_the_configuration_of_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("run: {name: saved}\n")
    best = run / "checkpoints" / "best.ckpt"
    best.touch()
    request = read_request("test", ["--ckpt_path", str(best), "--run.name=mine"])
    assert request.tree.values == {"run": {"name": "mine"}}
    assert [o.key for o in request.overrides] == ["ckpt_path"]
    assert (request.checkpoint, request.run) == (best, run)
    assert read_request("test", ["--ckpt_path", str(run)]).checkpoint == best
    base = read_request("test", ["--ckpt_path", str(best), "--config", str(CONFIG_ROOT / "base.yaml")])
    assert "model" in base.tree.values


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint file"):
        find_checkpoint(str(tmp_path / "nowhere.ckpt"), "best.ckpt")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--modle.width=3"], "did you mean 'model'"),
        (["--output=x"], "--output: unknown option"),
        (["--print_confg"], "print_config"),
        (["--trainer.max_epochs"], "a value is missing"),
        (["--config", "ablations/kunlum"], "did you mean ablations/kunlun"),
    ],
)
def test_a_wrong_command_line_is_refused(argv: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_request("fit", argv)


def test_reading_a_request_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kunlun.command_line import read_request as r; r('fit', ['--config', 'ablations/kunlun']);"
        "sys.exit(bool({'torch', 'lightning', 'wandb', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=False).returncode == 0
