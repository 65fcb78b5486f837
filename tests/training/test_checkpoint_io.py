"""Checkpoints are read as plain data only, and written so that a damage is noticed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kunlun.checkpoints import state_of, write_checkpoint
from kunlun.configuration import RunError
from kunlun.training.checkpoint_io import SealedCheckpointIO

STATE = {"state_dict": {"a": torch.arange(100.0)}, "random_state": [[3, [1, 2], None]], "betas": (0.9, 0.99)}


def test_what_is_saved_is_loaded_by_any_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    SealedCheckpointIO().save_checkpoint(STATE, path)
    assert state_of(path) == "intact"
    for found in (
        SealedCheckpointIO().load_checkpoint(path),
        TorchCheckpointIO().load_checkpoint(path, weights_only=True),
        torch.load(path, weights_only=True),
    ):
        assert torch.equal(found["state_dict"]["a"], STATE["state_dict"]["a"])
        assert found["betas"] == (0.9, 0.99)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.command = f"touch {witness}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("asked", [None, False, True])
def test_a_checkpoint_that_runs_a_command_does_not(sealed: bool, asked: bool | None, tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.ckpt", tmp_path / "witness"
    evil = {**STATE, "callbacks": Malicious(witness)}
    if sealed:
        write_checkpoint(path, lambda file: torch.save(evil, file))
    else:
        torch.save(evil, path)
    with pytest.raises(RunError, match=r"evil\.ckpt was not loaded.*might run code"):
        SealedCheckpointIO().load_checkpoint(path, weights_only=asked)
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()  # the test tests something


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.ckpt", tmp_path / "witness"
    path.write_bytes(pickle.dumps(Malicious(witness)))
    with pytest.raises(RunError, match="damaged"):
        SealedCheckpointIO().load_checkpoint(path)
    assert not witness.exists()


def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    SealedCheckpointIO().save_checkpoint(STATE, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="damaged"):
        SealedCheckpointIO().load_checkpoint(path)


def test_a_full_disk_is_named_though_torch_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened(Path("/dev/full"), "wb", buffering=0))
    with pytest.raises(RunError, match="the disk is full; free some space"):
        SealedCheckpointIO().save_checkpoint(STATE, tmp_path / "a.ckpt")


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    SealedCheckpointIO().save_checkpoint(STATE, path)
    SealedCheckpointIO().remove_checkpoint(path)
    SealedCheckpointIO().remove_checkpoint(path)
    assert not path.exists()
