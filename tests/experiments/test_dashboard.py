"""What W&B is told of a matrix, read back from the offline run; the workspace, without a server."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from kunlun.configuration import ConfigError
from kunlun.experiments import dashboard
from kunlun.experiments.dashboard import COLUMNS, DashboardOptions, log_result, row, workspace
from kunlun.training.runs import RunOptions
from tests.experiments.support import matrix, scaling
from tests.wandb_file import read_offline_run

OFFLINE = RunOptions(wandb="offline", project="tried")


def logged(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return read_offline_run(path), path.parent / "files"


def test_an_offline_run_holds_the_table_the_charts_and_the_report(tmp_path):
    result = matrix()
    (tmp_path / "report.html").write_text("<h1>report</h1>")
    told = log_result(result, OFFLINE, tmp_path)
    run, files = logged(tmp_path)
    assert (run.project, run.group, run.job_type, run.exit_code) == ("tried", result.name, "table", 0)
    assert run.config["reference"] == result.reference
    (history,) = run.history
    assert history["ablation/table/_type"] == "table-file"
    assert history["ablation/report/_type"] == "html-file"
    charts = {f"ablation/{name}_table/path" for name in ("ne_delta", "flops", "training_qps", "cost_and_quality")}
    assert charts <= set(history)
    table = json.loads((files / history["ablation/table/path"]).read_text())
    assert table["columns"] == list(COLUMNS)
    by_name = {line[0]: dict(zip(COLUMNS, line, strict=True)) for line in table["data"]}
    assert list(by_name) == [v.name for v in result.variants]
    worst = max((v for v in result.variants if "ne" in v.delta), key=lambda v: v.delta["ne"].mean)
    assert by_name[worst.name]["ne_delta_percent"] == pytest.approx(worst.delta_percent["ne"].mean)
    assert run.summary[f"ne_delta_percent/{worst.name}"] == pytest.approx(worst.delta_percent["ne"].mean)
    assert "wandb sync" in told
    assert str(files.parent.name) in told


def test_a_variant_without_results_is_a_row_of_nothing_but_its_failures():
    result = matrix()
    failed = [v for v in result.variants if any(c.status == "failed" for c in v.cells)]
    assert failed
    for variant in failed:
        assert row(variant)["failed"] == sum(c.status == "failed" for c in variant.cells)


def test_a_scaling_experiment_has_a_row_per_training_and_its_slopes(tmp_path):
    result = scaling()
    (tmp_path / "report.html").write_text("<h1>report</h1>")
    log_result(result, OFFLINE, tmp_path)
    run, files = logged(tmp_path)
    table = json.loads((files / run.history[0]["scaling/table/path"]).read_text())
    done = sum(c.status == "done" for ladder in result.ladders for p in ladder.points for c in p.cells)
    assert len(table["data"]) == done
    assert run.summary["eta_ratio/kunlun"] == pytest.approx(result.ratios["kunlun"].mean)


def test_nothing_is_written_where_wandb_is_off(tmp_path):
    off = RunOptions(wandb="disabled")
    assert log_result(matrix(), off, tmp_path) is None
    assert log_result(scaling(), off, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_the_workspace_shows_what_runs_and_tables_log():
    made = json.dumps(workspace("someone", "kunlun", "matrix")._to_model().model_dump(by_alias=True, mode="json"))
    for metric in (
        "test/ne",
        "valid/ne",
        "train/loss",
        "efficiency/samples_per_second",
        "efficiency/mfu",
        "ablation/table",
        "scaling/table",
    ):
        assert metric in made, metric
    assert "matrix" in made


def test_without_a_login_the_dashboard_says_what_to_do(monkeypatch):
    import wandb

    class Refusing:
        def __init__(self):
            raise wandb.errors.UsageError("api_key not configured")

    monkeypatch.setattr(wandb, "Api", Refusing)
    with pytest.raises(ConfigError, match="wandb login"):
        dashboard.save_workspace(DashboardOptions())
    assert {f.name for f in fields(DashboardOptions)} == {"project", "entity", "group"}
