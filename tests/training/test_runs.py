"""Run directories: unique, complete, without secrets; and who W&B thinks is logged in."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from kunlun.features import FeatureSchema, SparseField, Table, Task
from kunlun.training.runs import (
    RunOptions,
    create_run_directory,
    git_state,
    redact,
    redact_arguments,
    remove_if_unused,
    save_run,
    wandb_mode,
)

SCHEMA = FeatureSchema("toy", (Task("click", 0.5),), (), (SparseField("f", "f"),), {"f": Table(3)})


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_no_two_runs_share_a_directory(tmp_path: Path) -> None:
    options = RunOptions(name="same", root=str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_run_directory(options), range(64)))
    assert len(set(made)) == 64
    assert all(path.parent == tmp_path / "same" and path.is_dir() for path in made)


def test_a_name_that_is_taken_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr("kunlun.training.runs.secrets.token_hex", lambda _: next(tokens))
    monkeypatch.setattr("kunlun.training.runs.time.strftime", lambda *_: "20250101-000000")
    options = RunOptions(name="run", root=str(tmp_path))
    first, second = create_run_directory(options), create_run_directory(options)
    assert (first.name, second.name) == ("20250101-000000-aaaaaa", "20250101-000000-bbbbbb")


def test_an_unused_directory_goes_with_its_empty_parents_only(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    kept = create_run_directory(RunOptions(name="kept", root=str(root)))
    unused = create_run_directory(RunOptions(name="unused", root=str(root)))
    remove_if_unused(unused)
    assert not unused.parent.exists()
    assert kept.is_dir()
    (kept / "file").touch()
    remove_if_unused(kept)
    assert (kept / "file").is_file()


@pytest.mark.parametrize("options", [{"name": "a/b"}, {"name": ""}, {"name": "a b"}, {"patience": 0}])
def test_unusable_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RunOptions(**options)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("api_key", "abc", "***"),
        ("WANDB_API_KEY", "abc", "***"),
        ("apiKey", "abc", "***"),
        ("hub.token", "abc", "***"),
        ("password", "abc", "***"),
        ("aws_secret_access_key", "abc", "***"),
        ("tokens", 8, 8),
        ("context_tokens", 8, 8),
        ("kv_tokens", "8", "8"),
        ("monkey", "abc", "abc"),
        ("token", "", ""),
        ("token", None, None),
        ("path", "s3://me:secret@host/x", "s3://***@host/x"),
        ("path", "https://host/x?token=abc&y=1", "https://host/x?token=***&y=1"),
        ("path", "https://host/x?y=1", "https://host/x?y=1"),
        ("urls", ["http://u:p@h/"], ["http://***@h/"]),
    ],
)
def test_secrets_are_hidden_and_nothing_else(name: str, value: object, expected: object) -> None:
    assert redact({"outer": {name: value}}) == {"outer": {name: expected}}


def test_a_command_line_hides_its_secrets() -> None:
    given = ["--data.token=abc", "--api_key", "abc", "--data.path", "s3://u:p@h/", "--model.width", "3", "--flag"]
    shown = ["--data.token=***", "--api_key", "***", "--data.path", "s3://***@h/", "--model.width", "3", "--flag"]
    assert redact_arguments(given) == shown


def test_a_saved_run_says_what_it_ran_on(tmp_path: Path) -> None:
    config = {"seed_everything": 3, "data": {"token": "abc", "lr": 1e-05}}
    save_run(tmp_path, config, ["fit", "--data.token=abc"], SCHEMA, "last.ckpt")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {
        "seed_everything": 3,
        "data": {"token": "***", "lr": 1e-05},
    }
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["command"] == ["cli.py", "fit", "--data.token=***"]
    assert (record["seed"], record["resumed_from"]) == (3, "last.ckpt")
    assert record["versions"]["torch"].startswith("2.")
    other = FeatureSchema("toy", (Task("click", 0.5),), (), (SparseField("f", "f"),), {"f": Table(4)})
    save_run(tmp_path, config, [], other)
    assert json.loads((tmp_path / "run.json").read_text())["schema"]["sha256"] != record["schema"]["sha256"]


def test_git_state_is_a_commit_or_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kunlun.training.runs.PROJECT_ROOT", tmp_path)
    assert git_state() is None


def test_wandb_is_offline_unless_logged_in(logged_out: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert wandb_mode(RunOptions()) == "offline"
    logged_out.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode(RunOptions()) == "online"
    assert wandb_mode(RunOptions(wandb="offline")) == "offline"
    assert wandb_mode(RunOptions(wandb="disabled")) == "disabled"
    logged_out.setenv("WANDB_MODE", "offline")
    assert wandb_mode(RunOptions()) == "offline"
    logged_out.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(RunOptions()) == "disabled"


@pytest.mark.parametrize(
    ("entry", "server", "mode"),
    [
        ("machine api.wandb.ai login user password x", None, "online"),
        ("machine api.wandb.ai login user password x", "https://wandb.example.com", "offline"),
        ("machine wandb.example.com login user password x", "https://wandb.example.com", "online"),
        ("machine github.com login user password x", None, "offline"),
        ("not a netrc file {", None, "offline"),
    ],
)
def test_a_netrc_entry_for_the_server_is_a_login(
    entry: str, server: str | None, mode: str, logged_out: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / ".netrc"
    path.write_text(entry + "\n")
    path.chmod(0o600)
    if server:
        logged_out.setenv("WANDB_BASE_URL", server)
    assert wandb_mode(RunOptions()) == mode
