"""`inspect synthetic`: what is in a synthetic world, as for prepared data, and what its oracle knows.

Legend: n rows that were looked at · p their true probabilities, of the first task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

import numpy as np
import plotly.graph_objects as go
import torch
from tqdm import tqdm

from data.inspection.charts import BLUE, GREEN, INK, ORANGE, Chart, finished
from data.inspection.collect import Chunk, collect
from data.inspection.page import page
from data.inspection.prepared import sample_rows
from data.inspection.results import Inspection
from data.inspection.show import show
from data.inspection.tables import Column, Section, count, figure, sections, share
from data.inspection.text import text
from data.synthetic import SyntheticWorld
from data.synthetic_config import SPLITS
from data.synthetic_options import SyntheticInspectionOptions
from data.synthetic_oracle import OracleSummary, summarise

CHUNK_EVENTS = 300_000
BINS = 20
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)


@dataclass(frozen=True)
class WorldInspection:
    """The columns as of any data set; what the oracle can expect; p (n,) and the labels (n,) drawn with it."""

    found: Inspection
    oracle: OracleSummary
    strengths: dict[str, float]
    rate: float
    p: np.ndarray
    labels: np.ndarray


def show_world(options: SyntheticInspectionOptions) -> None:
    """Print what is in the world, and write the page if one is wanted. DataError: it cannot be written."""
    show(options.html, lambda: inspect_world(options), world_text, world_page)


def inspect_world(options: SyntheticInspectionOptions) -> WorldInspection:
    """Look at ``options.rows`` rows of each split."""
    config = options.world()
    world = SyntheticWorld(config)
    schema = replace(world.schema, name=f"synthetic world {options.preset}")
    chosen = {split: sample_rows(config.rows(split), min(options.rows, config.rows(split))) for split in SPLITS}
    known: list[tuple[np.ndarray, np.ndarray]] = []

    def chunks() -> Iterator[tuple[str, Chunk]]:
        step = max(1, CHUNK_EVENTS // (len(schema.events) * config.max_events))
        total = sum(rows.size for rows in chosen.values())
        # Disabled where the output is no terminal.
        with tqdm(total=total, unit=" rows", unit_scale=True, leave=False, disable=None) as bar:
            for split, rows in chosen.items():
                for indices in torch.from_numpy(rows + world.split(split).start).split(step):
                    batch, p = world.known_batch(indices)
                    known.append((p[:, 0].numpy(), batch.labels[:, 0].numpy()))
                    lengths = [batch.events[event.name]["item"].lengths() for event in schema.events]
                    times = batch.request_time
                    yield (
                        split,
                        Chunk(
                            labels=batch.labels.numpy(),
                            dense=None if batch.dense is None else batch.dense.numpy(),
                            sparse=None if batch.sparse is None else batch.sparse.numpy(),
                            pointers=torch.stack(lengths, dim=1).numpy(),
                            request_time=None if times is None else times.numpy(),
                        ),
                    )
                    bar.update(len(indices))

    splits = collect(schema, chunks(), ZoneInfo("UTC"), schema.rows)
    return WorldInspection(
        found=Inspection(
            schema=schema, place="made as it is read, from nothing but a seed", timezone="UTC", splits=splits
        ),
        oracle=summarise(world, max_rows=options.rows),
        strengths=config.strengths.by_part(),
        rate=config.ctr,
        p=np.concatenate([p for p, _ in known]),
        labels=np.concatenate([labels for _, labels in known]),
    )


def world_text(inspected: WorldInspection) -> str:
    """The whole inspection; every line ends with a newline."""
    return text(inspected.found, _own(inspected))


def world_page(inspected: WorldInspection) -> str:
    """The same as one HTML page, with charts, in the layout of the page for prepared data."""
    drawn = [_gain_chart(inspected), _probability_chart(inspected), _calibration_chart(inspected)]
    return page(inspected.found, _own(inspected), drawn)


def world_sections(inspected: WorldInspection) -> list[Section]:
    """What the oracle knows comes after the overview, then what any data set has."""
    return sections(inspected.found, _own(inspected))


def _own(inspected: WorldInspection) -> list[Section]:
    return [_oracle(inspected), _gains(inspected), _probabilities(inspected), _calibration(inspected)]


def _oracle(inspected: WorldInspection) -> Section:
    columns = (
        *(Column(title, number=False) for title in ("task", "measure")),
        *(Column(title) for title in ("value", "± for the world", "± of labels")),
    )
    rows: list[tuple[str, ...]] = []
    for ne, auc in zip(inspected.oracle.nes, inspected.oracle.aucs, strict=True):
        for name, value, o in (("NE", ne.ne, ne), ("AUC", auc.auc, auc)):
            rows.append((ne.task, name, f"{value:.4f}", f"{o.standard_error:.4f}", f"{o.label_error:.4f}"))
    note = (
        f"What the true probabilities score, from {count(inspected.oracle.nes[0].rows)} rows of "
        f"{inspected.oracle.split}: no model can expect better. First ±: standard error as an estimate for the whole "
        "world. Second: standard deviation of the value on labels drawn for just these rows."
    )
    return Section("oracle", "The oracle", note, columns, tuple(rows), repeats=1)


def _gains(inspected: WorldInspection) -> Section:
    columns = (
        Column("part", number=False),
        *(Column(title) for title in ("strength", "NE without it", "share of the gain", "±")),
    )
    rows = tuple(
        (g.part, f"{inspected.strengths[g.part]:g}", f"{g.ne:.4f}", share(g.share), share(g.standard_error))
        for g in inspected.oracle.gains
    )
    note = (
        "NE of the best predictor that does not know one part of the click probability, and the share of the "
        "achievable gain, 1 - NE of the oracle, that it loses so. Shares need not add up to 100%: what two parts tell "
        "alike is lost with neither."
    )
    return Section("gains", "What each part carries", note, columns, rows)


def _probabilities(inspected: WorldInspection) -> Section:
    columns = (*(Column("median" if p == 50 else f"p{p}") for p in PERCENTILES), Column("mean"), Column("std"))
    values = [*np.percentile(inspected.p, PERCENTILES), inspected.p.mean(), inspected.p.std()]
    note = "Over the rows that were read, of all splits; the first task."
    return Section("probability", "The true probabilities", note, columns, (tuple(figure(float(v)) for v in values),))


def _calibration(inspected: WorldInspection) -> Section:
    columns = tuple(Column(title) for title in ("mean p", "rows", "share of positives", "±", "difference in ±"))
    rows = []
    for n, mean, rate, error in zip(*calibration_curve(inspected.p, inspected.labels), strict=True):
        apart = f"{(rate - mean) / error:+.1f}" if error else "–"
        rows.append((share(float(mean)), count(int(n)), share(float(rate)), share(float(error)), apart))
    note = (
        f"Rows in {BINS} equal parts by p: labels that were drawn with p are positive as often as p says, to one "
        "standard deviation ± in two of three parts."
    )
    return Section("calibration", "Labels against probabilities", note, columns, tuple(rows))


def calibration_curve(p: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, mean p, share of positives and its standard deviation in each of at most BINS equal parts by p."""
    order = np.argsort(p, kind="stable")
    pieces = [piece for piece in np.array_split(order, BINS) if piece.size]
    rows = np.array([piece.size for piece in pieces])
    mean = np.array([p[piece].mean() for piece in pieces])
    rate = np.array([labels[piece].mean() for piece in pieces])
    error = np.array([np.sqrt((p[piece] * (1 - p[piece])).sum()) / piece.size for piece in pieces])
    return rows, mean, rate, error


def _gain_chart(inspected: WorldInspection) -> Chart:
    gains = inspected.oracle.gains
    drawn = go.Figure()
    drawn.add_bar(
        x=[g.share for g in gains],
        y=[g.part for g in gains],
        orientation="h",
        marker_color=BLUE,
        error_x={"array": [2 * g.standard_error for g in gains], "color": INK, "thickness": 1.5},
        customdata=[inspected.strengths[g.part] for g in gains],
        hovertemplate="%{y}: %{x:.1%}, strength %{customdata:g}<extra></extra>",
    )
    drawn.update_layout(bargap=0.25)
    drawn.update_xaxes(tickformat=".0%", rangemode="tozero", side="top")
    drawn.update_yaxes(autorange="reversed", showgrid=False, ticksuffix=" ")
    caption = (
        "Share of the achievable gain that is lost where a part is not known, with two standard errors: a model that "
        "lacks the component meant for a part should fall short by about so much."
    )
    told = ", ".join(f"{g.part} {share(g.share)}" for g in gains)
    return Chart("gains", caption, f"Bars of the gain lost without each part: {told}.", 330, finished(drawn, 330))


def _probability_chart(inspected: WorldInspection) -> Chart:
    counts, edges = np.histogram(inspected.p, bins=50, range=(0.0, 1.0))
    drawn = go.Figure()
    drawn.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts / inspected.p.size,
        width=np.diff(edges),
        marker={"color": GREEN, "line": {"color": "white", "width": 0.5}},
        hovertemplate="p near %{x:.2f}: %{y:.2%} of the rows<extra></extra>",
    )
    drawn.add_vline(x=inspected.rate, line={"color": INK, "dash": "dash", "width": 1.5})
    drawn.update_xaxes(range=[0, 1], title_text="true probability of a click")
    drawn.update_yaxes(tickformat=".0%", title_text="rows", rangemode="tozero")
    caption = (
        "How the true probabilities spread; dashed: their mean, by calibration. A world where all lie near it has "
        "little to gain."
    )
    low, middle, high = np.percentile(inspected.p, (10, 50, 90))
    spoken = (
        f"Histogram of the true probabilities: 10 percent lie below {low:.3f}, half below {middle:.3f}, 90 percent "
        f"below {high:.3f}."
    )
    return Chart("probability", caption, spoken, 320, finished(drawn, 320))


def _calibration_chart(inspected: WorldInspection) -> Chart:
    _, mean, rate, error = calibration_curve(inspected.p, inspected.labels)
    end = 1.05 * max(float((rate + 2 * error).max()), float(mean.max()))
    drawn = go.Figure()
    drawn.add_scatter(
        x=[0, end], y=[0, end], mode="lines", line={"color": INK, "width": 1}, hoverinfo="skip", showlegend=False
    )
    drawn.add_scatter(
        x=mean,
        y=rate,
        mode="markers",
        marker={"color": ORANGE, "size": 8},
        error_y={"array": 2 * error, "color": ORANGE, "thickness": 1.5},
        hovertemplate="mean p %{x:.3f}: %{y:.3f} positive<extra></extra>",
        showlegend=False,
    )
    drawn.update_xaxes(range=[0, end], title_text="mean p")
    drawn.update_yaxes(range=[0, end], title_text="share of positives")
    caption = (
        f"Labels against probabilities in {BINS} equal parts of the rows, with two standard deviations: the points lie "
        "on the line where labels are drawn with the probabilities that are said to be true."
    )
    worst = float(np.abs((rate - mean) / np.maximum(error, 1e-12)).max())
    spoken = f"Share of positives against mean p in {BINS} parts: at most {worst:.1f} standard deviations apart."
    return Chart("calibration", caption, spoken, 400, finished(drawn, 400))
