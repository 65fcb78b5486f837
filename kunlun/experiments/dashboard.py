"""The matrix in W&B: one run with the table, and a workspace that shows table, curves and costs without a click.

Everything is logged offline unless one is logged in. The workspace lives on the server, so making it needs a login:
``python cli.py dashboard --project kunlun``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kunlun.configuration import ConfigError, shown
from kunlun.experiments.costs import Costs
from kunlun.experiments.results import MatrixResult, ScalingResult, VariantResult
from kunlun.training.runs import RunOptions, redact, wandb_mode

if TYPE_CHECKING:
    import wandb
    import wandb_workspaces.workspaces as ws

COLUMNS = (
    *("variant", "family", "seeds", "failed", "ne", "ne_delta_percent", "ne_delta_low", "ne_delta_high", "auc", "gauc"),
    *("calibration", "oracle_share", "flops_per_sample", "flops_ratio", "parameters_dense", "parameters_embedding"),
    *("training_qps", "training_qps_ratio", "inference_qps", "latency_p50_ms", "latency_p99_ms", "mfu"),
    *("peak_memory_mib", "published"),
)


# A table, charts by name, and figures of the run's summary: what → name → value.
Logged: TypeAlias = "tuple[wandb.Table, dict[str, Any], dict[str, dict[str, float]]]"


@dataclass(frozen=True)
class DashboardOptions:
    """Whose project, and which of its runs."""

    project: str = "kunlun"
    """W&B project."""
    entity: str | None = None
    """User or team; default: the one you are logged in as."""
    group: str | None = None
    """Only the runs of one matrix, by its name."""


def row(variant: VariantResult) -> dict[str, Any]:
    """One line of the W&B table; None where a figure is not known."""
    mean = {name: estimate.mean for name, estimate in variant.metrics.items()}
    delta = variant.delta_percent.get("ne")
    cost = Costs.of(variant.efficiency)
    return {
        "variant": variant.name,
        "family": variant.family,
        "seeds": len(variant.done()),
        "failed": sum(cell.status == "failed" for cell in variant.cells),
        **{name: mean.get(name) for name in ("ne", "auc", "gauc", "calibration", "oracle_share")},
        "ne_delta_percent": delta and delta.mean,
        "ne_delta_low": delta and delta.low,
        "ne_delta_high": delta and delta.high,
        "flops_per_sample": cost.flops,
        "flops_ratio": variant.ratio.get("flops"),
        "parameters_dense": cost.parameters_dense,
        "parameters_embedding": cost.parameters_embedding,
        "training_qps": cost.training_qps,
        "training_qps_ratio": variant.ratio.get("training_qps"),
        "inference_qps": cost.inference_qps,
        "latency_p50_ms": cost.latency_p50,
        "latency_p99_ms": cost.latency_p99,
        "mfu": cost.mfu,
        "peak_memory_mib": cost.peak_memory and cost.peak_memory / 2**20,
        "published": variant.published,
    }


def log_result(result: MatrixResult | ScalingResult, options: RunOptions, folder: Path) -> str | None:
    """A run of its own in the group of the experiment: ``wandb.Table``, charts, the report; None where W&B is off.

    Returns a line that says where it is.
    """
    mode = wandb_mode(options)
    if mode == "disabled":
        return None
    import wandb

    table, charts, figures = _of_matrix(result) if isinstance(result, MatrixResult) else _of_scaling(result)
    run = wandb.init(
        name=f"{result.name}-table",
        dir=str(folder),
        mode="online" if mode == "online" else "offline",
        project=options.project,
        group=result.name,
        job_type="table",
        config=redact({"data": result.data, "split": result.split, "reference": result.reference}),
        settings=wandb.Settings(silent=mode == "offline", quiet=True, console="off"),
    )
    page = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
    logged = {"table": table, "report": page, **charts}
    run.log({f"{result.kind}/{name}": value for name, value in logged.items()})
    for figure, values in figures.items():
        run.summary.update({f"{figure}/{name}": value for name, value in values.items()})
    where = Path(run.dir).parent
    run.finish()
    return f"W&B: the table is in {shown(where)}" + ("" if mode == "online" else f" (wandb sync {shown(where)})")


def _of_matrix(result: MatrixResult) -> Logged:
    import wandb

    table = wandb.Table(columns=list(COLUMNS), data=[[row(v)[name] for name in COLUMNS] for v in result.variants])
    charts = {
        "ne_delta": wandb.plot.bar(table, "variant", "ne_delta_percent", "NE against full, %"),
        "flops": wandb.plot.bar(table, "variant", "flops_per_sample", "FLOPs per sample"),
        "training_qps": wandb.plot.bar(table, "variant", "training_qps", "samples/s in training"),
        "cost_and_quality": wandb.plot.scatter(table, "flops_per_sample", "ne", "NE and FLOPs"),
    }
    deltas = {v.name: v.delta_percent["ne"].mean for v in result.variants if "ne" in v.delta_percent}
    return table, charts, {"ne_delta_percent": deltas}


SCALING_COLUMNS = ("model", "size", "flops_per_sample", "parameters_dense", "seed", "ne")


def _of_scaling(result: ScalingResult) -> Logged:
    """A row per training; the slopes in the run's summary."""
    import wandb

    rows = [
        [ladder.model, point.size, point.flops, point.parameters.get("dense"), cell.seed, cell.metrics["ne"]]
        for ladder in result.ladders
        for point in ladder.points
        for cell in point.cells
        if cell.status == "done"
    ]
    table = wandb.Table(columns=list(SCALING_COLUMNS), data=rows)
    charts = {"ne": wandb.plot.scatter(table, "flops_per_sample", "ne", "NE and FLOPs per sample")}
    etas = {ladder.model: ladder.log.coefficients["eta"].mean for ladder in result.ladders if ladder.log}
    ratios = {model: estimate.mean for model, estimate in result.ratios.items()}
    return table, charts, {"eta": etas, "eta_ratio": ratios}


def workspace(entity: str, project: str, group: str | None = None) -> ws.Workspace:
    """What a project looks like in W&B: the tables of matrices and ladders, quality by variant, learning curves, costs.

    Args:
        group: only the runs of one matrix.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    by_name: dict[str, Any] = {
        "groupby": wr.Config("run.name"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
    }

    def bars(metric: str, title: str) -> wr.BarPlot:
        return wr.BarPlot(title=title, metrics=[metric], **by_name)

    def curve(metric: str, title: str) -> wr.LinePlot:
        return wr.LinePlot(title=title, x="trainer/global_step", y=[metric], **by_name)

    panels: dict[str, list[Any]] = {
        "Ablation table": [wr.WeavePanelSummaryTable(table_name="ablation/table")],
        "Scaling law": [wr.WeavePanelSummaryTable(table_name="scaling/table")],
        "Quality by variant": [
            bars("test/ne", "NE, test"),
            bars("valid/ne", "NE, valid"),
            bars("test/auc", "AUC, test"),
            bars("test/gauc", "GAUC, test"),
            bars("test/calibration", "Calibration, test"),
            bars("test/oracle_share", "Share of the oracle's gain, test"),
        ],
        "Learning curves": [
            curve("train/loss", "Training loss"),
            curve("valid/ne", "NE, valid"),
            curve("valid/auc", "AUC, valid"),
        ],
        "Efficiency": [
            curve("efficiency/samples_per_second", "Samples/s"),
            curve("efficiency/mfu", "MFU"),
            curve("efficiency/data_wait_share", "Share of time spent waiting for data"),
        ],
    }
    filters = [ws.Metric("Group") == group] if group else []
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Ablation {group}" if group else "Ablation",
        sections=[ws.Section(name=name, panels=shown_in, is_open=True) for name, shown_in in panels.items()],
        runset_settings=ws.RunsetSettings(filters=filters),
    )


def save_workspace(options: DashboardOptions) -> str:
    """Make the workspace on the server; its address. ConfigError says what is missing."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise ConfigError("dashboard needs wandb-workspaces: pip install 'kunlun-rec[dashboard]'") from error
    import wandb

    try:
        entity = options.entity or str(wandb.Api().default_entity)
        return str(workspace(entity, options.project, options.group).save().url)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise ConfigError(f"dashboard: W&B refused ({error}); `wandb login` first, and see --entity") from error
