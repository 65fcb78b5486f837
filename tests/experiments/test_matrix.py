"""What a matrix asks for is read, checked and told apart before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kunlun.configuration import ConfigError
from kunlun.experiments.matrix import BASELINES, MatrixOptions, changes, read_matrix
from tests.conftest import ROOT

BASE = ["--config", "ablations/matrix.yaml"]
FEW = ["--variants", "[kunlun, no_gdpa, din]"]


def test_the_shipped_matrix_has_every_ablation_and_its_reference_first():
    matrix = read_matrix(BASE)
    assert matrix.reference.name == "kunlun"
    files = {path.stem for path in (ROOT / "configs/ablations").glob("*.yaml")} - {"matrix"}
    assert {variant.name for variant in matrix.variants} == files
    families = {variant.name: variant.family for variant in matrix.variants}
    assert families["no_gdpa"] == "no"
    assert families["drop_hsp"] == "drop"
    assert families["uniform_events"] == "other"
    assert {name for name, family in families.items() if family == "baseline"} == set(BASELINES)
    assert all(variant.summary.endswith(".") for variant in matrix.variants)


def test_a_variant_is_its_own_file_over_the_shared_ones_and_under_the_command_line():
    matrix = read_matrix(
        [*BASE, *FEW, "--config", "models/tiny.yaml", "--training.optimizer.lr", "0.02", "--seeds", "[3, 5]"]
    )
    assert matrix.options.seed_list == [3, 5]
    full, no_gdpa, din = matrix.variants
    assert full.values["model"]["init_args"]["width"] == 16
    assert changes(no_gdpa.values, full.values) == {"model.init_args.components.gdpa": [True, False]}
    assert din.values["model"]["class_path"] == "kunlun.models.DIN"
    assert {v.values["training"]["optimizer"]["lr"] for v in matrix.variants} == {0.02}
    assert {v.values["data"]["init_args"]["preset"] for v in matrix.variants} == {"small"}


def test_the_key_of_a_cell_changes_with_all_that_can_change_its_result_and_nothing_else(tmp_path):
    def keys(*more: str) -> list[str]:
        return [variant.key(0) for variant in read_matrix([*BASE, *FEW, *more]).variants]

    first = keys()
    assert len(set(first)) == 3
    assert keys("--run.project", "elsewhere", "--jobs", "3", "--seeds", "9") == first
    assert not set(keys("--run.monitor", "valid/auc", "--run.mode", "max")) & set(first)
    assert not set(keys("--training.optimizer.lr", "0.02")) & set(first)
    own = tmp_path / "no_gdpa.yaml"
    own.write_text("run: {name: mine}\nmodel: {init_args: {components: {gdpa: false}, layers: 1}}\n")
    changed = [v.key(0) for v in read_matrix([*BASE, "--variants", f"[kunlun, {own}, din]"]).variants]
    assert [changed[0], changed[2]] == [first[0], first[2]]
    assert changed[1] != first[1]


def test_other_data_under_the_same_path_are_other_cells(tmp_path):
    (tmp_path / "schema.json").write_text("{}")
    data = ["--config", "data/userbehavior.yaml", "--data.path", str(tmp_path)]
    before = read_matrix([*BASE, *FEW, *data]).reference.key()
    (tmp_path / "schema.json").write_text(json.dumps({"other": 1}))
    assert read_matrix([*BASE, *FEW, *data]).reference.key() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "[kunlun, no_gpda]"], r"matrix.variants: config 'ablations/no_gpda.yaml' not found.*no_gdpa"),
        (["--variants", "[no_gdpa, no_hsp]"], r"the reference 'kunlun' is not among them"),
        (["--seeds", "0"], "seeds must be a number above 0"),
        (["--seeds", "[1, 1]"], "different seeds"),
        (["--seeds", "[-1]"], "different seeds ≥ 0"),
        (["--seeds", "many"], "matrix.seeds"),
        (["--jobs", "0"], "jobs ≥ 1"),
        (["--jobs", "2", "--gpus", "[0]"], "2 jobs need as many GPUs"),
        (["--split", "train"], "matrix.split"),
        (["--sedes", "3"], "did you mean"),
        (["--training.optimizer.lrr", "3"], "lrr"),
        (
            ["--search", "{trainer.max_epochs: [1]}", "--trainer.max_epochs", "2"],
            "the search chooses it; see --matrix.sea",
        ),
        (["--search", "{training.optimizer.lrr: [1]}"], "did you mean 'lr'"),
        (["--seeds", "[1000]"], "not the search_seed 1000"),
        (["--run.root", "there"], "--run.root: the matrix gives every cell its own"),
        (["--trainer.fast_dev_run", "true"], "fast_dev_run"),
        (
            ["--variants", "[kunlun, din, ablations/din.yaml]"],
            "2 files are called 'din'",
        ),
        (["--model.widht", "3", "--variants", "[kunlun]"], "widht"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_place(arguments, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        read_matrix([*BASE, *FEW, *arguments])


def test_a_matrix_file_is_a_configuration_with_one_more_section():
    values = yaml.safe_load((ROOT / "configs/ablations/matrix.yaml").read_text())
    assert MatrixOptions(**values["matrix"]).folder == Path("runs/matrix")
    assert set(values) <= {"matrix", "data", "trainer"}


def test_without_a_matrix_it_says_what_is_missing():
    with pytest.raises(ConfigError, match=r"--config ablations/matrix\.yaml"):
        read_matrix(["--config", "models/tiny.yaml"])


def test_a_class_that_is_changed_and_changed_back_is_refused(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {class_path: kunlun.models.Kunlun, init_args: {width: 16}}\n")
    with pytest.raises(ConfigError, match="changed and then changed back"):
        read_matrix([*BASE, "--config", "ablations/wukong.yaml", "--variants", f"[kunlun, {mine}]"])
