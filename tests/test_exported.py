"""A model that is exported and loaded answers as its checkpoint does, needs no Lightning, and refuses damaged files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import cli
import data
from kunlun.configuration import PROJECT_ROOT, ConfigError
from kunlun.exported import ExportError, _digest, load_exported, write_exported
from kunlun.layers.embedding import EmbeddingConfig
from kunlun.models import DIN
from tests.support import toy_batch, toy_schema

SIZES = {"batch_size": 32, "eval_batch_size": 20, "max_length": 8}
QUICK = [
    *(f"--data.{name}={value}" for name, value in SIZES.items()),
    *("--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--run.wandb=disabled"),
]
CONFIGS = {"kunlun": ["models/tiny"], "din": ["ablations/din"]}


@pytest.fixture(scope="module", params=list(CONFIGS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run directory of a short fit, and the folder it was exported to."""
    root = tmp_path_factory.mktemp(request.param)
    configs = [part for name in CONFIGS[request.param] for part in ("--config", name)]
    assert cli.run(["fit", *configs, f"--run.root={root / 'runs'}", *QUICK]) == 0
    (run,) = (root / "runs").glob("*/*")
    assert cli.run(["export", "--ckpt_path", str(run), "--out", str(root / "exports" / "model")]) == 0
    assert [path.name for path in (root / "exports").iterdir()] == ["model"]
    return run, root / "exports" / "model"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A small exported DIN, untrained, to be damaged."""
    schema = toy_schema()
    model = DIN(schema, width=8, embedding=EmbeddingConfig(width=4))
    config = {"class_path": "kunlun.models.DIN", "init_args": {"width": 8, "embedding": {"width": 4}}}
    write_exported(tmp_path / "toy", model, config, schema, {"run": "none"})
    return tmp_path / "toy"


def reseal(folder: Path) -> None:
    """Make the checksums those of the files as they are: what remains is what the files say."""
    path = folder / "export.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "files": {name: _digest(folder / name) for name in record["files"]}}))


def test_the_probabilities_are_those_of_predict_bit_for_bit(exported: tuple[Path, Path], tmp_path: Path) -> None:
    run, folder = exported
    output = tmp_path / "predictions.parquet"
    limit = "--trainer.limit_predict_batches=3"
    assert cli.run(["predict", "--ckpt_path", str(run), f"--output={output}", limit]) == 0
    predicted = torch.from_numpy(pq.read_table(output)["probability"].to_numpy().copy())
    model = load_exported(folder)
    batches = iter(data.SyntheticData(preset="tiny", **SIZES).predict_dataloader())
    with torch.inference_mode():
        found = torch.cat([torch.sigmoid(model(next(batches)).float()) for _ in range(3)])[:, 0]
    assert len(found) == 60
    assert torch.equal(found, predicted)
    assert found.unique().numel() > 1


def test_the_folder_says_where_the_model_comes_from(exported: tuple[Path, Path]) -> None:
    run, folder = exported
    record = json.loads((folder / "export.json").read_text())
    assert record["run"] == run.name
    assert record["checkpoint"].endswith("best.ckpt")
    assert record["step"] == 3
    assert record["train_rate"] == {"click": 0.25}
    assert {"python", "torch", "safetensors"} <= set(record["versions"])
    assert run.name in (folder / "README.md").read_text()


def test_it_loads_where_lightning_cannot_be_imported(exported: tuple[Path, Path]) -> None:
    code = (
        "import sys\n"
        "sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "from kunlun.exported import load_exported\n"
        "model = load_exported(sys.argv[1])\n"
        "assert not model.training\n"
        "print(sum(p.numel() for p in model.parameters()))\n"
        "try:\n    import lightning\nexcept ImportError:\n    print('blocked')\n"
    )
    command = [sys.executable, "-c", code, str(exported[1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, blocked = done.stdout.split()
    assert int(count) == json.loads((exported[1] / "export.json").read_text())["parameters"]
    assert blocked == "blocked"


def test_a_folder_that_holds_something_is_left_alone(exported: tuple[Path, Path], tmp_path: Path) -> None:
    run, folder = exported
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="not an empty folder"):
        cli.run(["export", "--ckpt_path", str(run), f"--out={folder}"])
    with pytest.raises(ConfigError, match="needs the folder to write"):
        cli.run(["export", "--ckpt_path", str(run)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert cli.run(["export", "--ckpt_path", str(run / "checkpoints/last.ckpt"), f"--out={tmp_path / 'empty'}"]) == 0
    load_exported(tmp_path / "empty")


def test_a_checkpoint_of_another_model_is_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit the model"):
        cli.run(["export", "--ckpt_path", str(exported[0]), f"--out={tmp_path / 'new'}", "--model.width=24"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("occupied", ["folder", "file"])
def test_a_place_taken_meanwhile_is_not_overwritten(occupied: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if occupied == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(ExportError, match="not an empty folder"):
        write_exported(out, nn.Linear(2, 2), {"class_path": "torch.nn.Linear"}, toy_schema(), {})
    assert (out / "notes.txt" if occupied == "folder" else out).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kunlun.exported._readme", full)
    with pytest.raises(ExportError, match="No space left"):
        write_exported(tmp_path / "out", nn.Linear(2, 2), {"class_path": "torch.nn.Linear"}, toy_schema(), {})
    assert not list(tmp_path.iterdir())


def test_the_state_of_random_numbers_stays(toy: Path) -> None:
    before = torch.get_rng_state()
    load_exported(toy)
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_weights_come_back(tmp_path: Path) -> None:
    schema = toy_schema()
    model = DIN(schema, width=8, embedding=EmbeddingConfig(width=4))
    first, second = list(model.units.values())
    second.load_state_dict(first.state_dict())
    for a, b in zip(first.modules(), second.modules(), strict=True):
        if isinstance(a, nn.Linear):
            b.weight = a.weight
    config = {"class_path": "kunlun.models.DIN", "init_args": {"width": 8, "embedding": {"width": 4}}}
    write_exported(tmp_path / "tied", model, config, schema, {})
    batch = toy_batch(schema, 6, torch.Generator().manual_seed(0))
    assert torch.equal(load_exported(tmp_path / "tied")(batch), model.eval()(batch))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "schema.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut short", "a bit changed", "missing"])
def test_a_damaged_folder_is_refused(toy: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(toy / name)
    with pytest.raises(ExportError, match=name):
        load_exported(toy)


@pytest.mark.parametrize(
    ("damage", "told"),
    [(cut, "cannot be read"), (flip, "changed after the export"), (Path.unlink, "is no exported model")],
    ids=["cut short", "a bit changed", "missing"],
)
def test_a_damaged_record_is_refused(toy: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(toy / "export.json")
    with pytest.raises(ExportError, match=told):
        load_exported(toy)


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return edit


def pickled(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "model.safetensors")


def truncated(folder: Path) -> None:
    cut(folder / "model.safetensors")


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, folder / "model.safetensors")


REFUSED = {
    "a pickle": (pickled, "is no safetensors file"),
    "weights cut short": (truncated, "is no safetensors file"),
    "a tensor too few": (without_a_tensor, "does not fit the model(.|\n)*Missing key"),
    "another size": (edited("config.yaml", "width: 8", "width: 16"), "does not fit the model(.|\n)*size mismatch"),
    "an unknown class": (edited("config.yaml", "DIN", "DINO"), r"config\.yaml:2.*did you mean 'DIN'"),
    "an unknown module": (edited("config.yaml", "kunlun.models", "nowhere.models"), "no module 'nowhere'"),
    "no module at all": (edited("config.yaml", "kunlun.models.DIN", "DIN"), "DIN is no Module"),
    "a function": (edited("config.yaml", "kunlun.models.DIN", "os.system"), "is no Module|unknown key"),
    "a class that is no model": (edited("config.yaml", "kunlun.models.DIN", "pathlib.Path"), "Path is no Module"),
    "an unknown argument": (edited("config.yaml", "  width: 8", "  widht: 8"), r"widht.*did you mean 'width'"),
    "an impossible argument": (edited("config.yaml", "width: 8", "width: 0"), "DIN cannot be built: width must be"),
    "no model section": (edited("config.yaml", "model:", "modle:"), "a class is expected"),
    "a schema of another version": (edited("schema.json", '"format": 1', '"format": 9'), "format 9 cannot be read"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_files_that_do_not_belong_together_are_refused(toy: Path, case: str) -> None:
    change, told = REFUSED[case]
    change(toy)
    reseal(toy)
    with pytest.raises(ExportError, match=told):
        load_exported(toy)


def test_a_format_of_another_version_is_refused(toy: Path) -> None:
    edited("export.json", '"format": 1', '"format": 2')(toy)
    with pytest.raises(ExportError, match="format 2 cannot be read here"):
        load_exported(toy)


def test_no_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cli\.py export --ckpt_path"):
        load_exported(tmp_path / "nothing")


def test_a_moved_folder_still_loads(toy: Path, tmp_path: Path) -> None:
    shutil.move(toy, tmp_path / "elsewhere")
    assert isinstance(load_exported(tmp_path / "elsewhere"), DIN)
