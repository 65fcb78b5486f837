"""The charts of an inspection as Plotly figures, each with a caption and the same in words for who cannot see it.

Names come from users' data, and Plotly reads a little HTML in text: every name goes through `safe`.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from data.inspection.results import Inspection, Lengths
from data.inspection.tables import count, coverage_by_field, fields_of_tables, share

# Okabe and Ito: told apart by nearly everyone, whatever colours they see.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, BLACK = PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"),
)
DASHES = ("solid", "dash", "dot", "dashdot")
INK, GRID = "#1a1a1a", "#dddddd"
MOST_FIELDS = 60  # in one chart; the table below it has them all
ROOMY_FIELDS = 12  # up to so many, every bar has a label of its own
CURVE_POINTS = 200
PERCENTILE_MARKS = (10, 50, 90, 99)


@dataclass(frozen=True)
class Chart:
    """``section`` is the key of the section it opens; ``spoken`` says what it shows without being seen."""

    section: str
    caption: str
    spoken: str
    height: int
    figure: dict[str, Any]


def charts(found: Inspection) -> list[Chart]:
    """Every chart that the data set has something for."""
    made = [_by_day(found) if any(s.days for s in found.splits) else _by_split(found), _coverage(found)]
    made += [_cardinalities(found), _histories(found)]
    return [chart for chart in made if chart is not None]


def safe(name: str, longest: int = 22) -> str:
    """A name as Plotly may show it: cut to ``longest`` characters, its markup shown and not obeyed."""
    return html.escape(name if len(name) <= longest else name[: longest - 1] + "…")


def finished(figure: go.Figure, height: int) -> dict[str, Any]:
    """The figure in the style of the page, ``height`` pixels high, as JSON for it."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 24, "t": 36, "b": 8},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top", "traceorder": "normal"},
        dragmode=False,
        hoverlabel={"bgcolor": "white", "font": {"color": INK}},
    )
    # A fixed range leaves a finger's movement to the page, which it scrolls.
    axes = {"fixedrange": True, "automargin": True, "gridcolor": GRID, "zeroline": False, "title_font_size": 13}
    figure.update_xaxes(axes)
    figure.update_yaxes(axes)
    return figure.to_dict()


def _by_day(found: Inspection) -> Chart:
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.5, 0.5])
    for i, split in enumerate(found.splits):
        days, color = [day.day.isoformat() for day in split.days], PALETTE[i]
        rows = [day.rows for day in split.days]
        hover = "%{x|%Y-%m-%d}: %{y:,} rows<extra>%{fullData.name}</extra>"
        figure.add_bar(x=days, y=rows, name=safe(split.name), marker_color=color, hovertemplate=hover, row=1, col=1)
        for t, task in enumerate(found.schema.tasks):
            rates = [day.positives[t] / day.rows for day in split.days]
            figure.add_scatter(
                x=days,
                y=rates,
                name=safe(task.name),
                mode="lines+markers",
                line={"color": color, "dash": DASHES[t % len(DASHES)]},
                # The colour is told by the bars; with several tasks the dashes need a key, once.
                showlegend=len(found.schema.tasks) > 1 and i == 0,
                hovertemplate=f"%{{x|%Y-%m-%d}}: %{{y:.2%}}<extra>{safe(split.name)}</extra>",
                row=2,
                col=1,
            )
    figure.update_layout(barmode="stack")
    figure.update_yaxes(title_text="rows", rangemode="tozero", row=1, col=1)
    highest = max(p / day.rows for split in found.splits for day in split.days for p in day.positives)
    # Room around the points; where all are 0, still an axis.
    figure.update_yaxes(
        title_text="positive", tickformat=".3~%", range=[-0.04 * highest, 1.15 * highest or 1], row=2, col=1
    )
    distinct = {day.day for split in found.splits for day in split.days}
    if len(distinct) <= 14:
        figure.update_xaxes(tickvals=[day.isoformat() for day in sorted(distinct)], tickformat="%b %d")
    told = []
    for split in found.splits:
        of_tasks = zip(found.schema.tasks, split.positives, strict=True)
        shares = ", ".join(f"{task.name} {share(positives, split.read)}" for task, positives in of_tasks)
        told.append(f"{split.name} {count(split.rows)} rows on {len(split.days)} days, {shares}")
    caption = (
        "Rows (above) and share of positive labels (below) of each day: look for days that are missing or thin, "
        "for a rate that jumps, and for a test split unlike train."
    )
    spoken = f"Rows and positive rate by day: {'; '.join(told)}."
    return Chart("days", caption, spoken, 420, finished(figure, 420))


def _by_split(found: Inspection) -> Chart:
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.2)
    names, colors = [safe(split.name) for split in found.splits], [*PALETTE[: len(found.splits)]]
    figure.add_bar(
        x=names,
        y=[split.rows for split in found.splits],
        marker_color=colors,
        hovertemplate="%{x}: %{y:,} rows<extra></extra>",
        showlegend=False,
        row=1,
        col=1,
    )
    several = len(found.schema.tasks) > 1
    for t, task in enumerate(found.schema.tasks):
        figure.add_bar(
            x=names,
            y=[split.positives[t] / max(split.read, 1) for split in found.splits],
            name=safe(task.name),
            marker_color=PALETTE[-1 - t % len(PALETTE)] if several else colors,
            hovertemplate="%{x}: %{y:.2%}<extra>%{fullData.name}</extra>",
            showlegend=several,
            row=1,
            col=2,
        )
    figure.update_yaxes(title_text="rows", row=1, col=1)
    figure.update_yaxes(title_text="positive", tickformat=".3~%", row=1, col=2)
    spoken = "; ".join(f"{s.name} {count(s.rows)} rows, {share(s.positives[0], s.read)} positive" for s in found.splits)
    caption = "Rows and share of positive labels of each split: look for a split whose rate is unlike that of train."
    return Chart("splits", caption, f"Rows and positive rate by split: {spoken}.", 300, finished(figure, 300))


def _coverage(found: Inspection) -> Chart | None:
    fields = [*coverage_by_field(found)]
    if not fields or not found.read:
        return None
    most = sorted(fields, key=lambda f: -max((c.missing + c.unknown) / max(c.total, 1) for c in f[1]))[:MOST_FIELDS]
    chosen = [f for f in fields if f in most]
    splits, crowded = len(found.splits), len(chosen) > ROOMY_FIELDS
    places, labels, shares = [], [], []
    for i, (name, of_splits) in enumerate(chosen):
        for j, (split, coverage) in enumerate(zip(found.splits, of_splits, strict=True)):
            # A gap of one bar between fields keeps the splits of a field together.
            places.append(i * (splits + 1) + j)
            if crowded:
                labels.append(safe(name) if j == splits // 2 else "")
            else:
                labels.append(f"<b>{safe(name)}</b> {safe(split.name)}" if j == 0 else safe(split.name))
            parts = np.array([coverage.missing, coverage.unknown, coverage.known])
            shares.append((parts / max(coverage.total, 1)).tolist())
    figure = go.Figure()
    looks = (("missing", "#444444", ""), ("unknown", VERMILLION, "/"), ("known", "#cfe6f5", ""))
    for k, (name, color, pattern) in enumerate(looks):
        figure.add_bar(
            x=[part[k] for part in shares],
            y=places,
            orientation="h",
            name=name,
            marker={
                "color": color,
                "pattern": {"shape": pattern, "size": 6, "fillmode": "overlay", "fgcolor": "white"},
            },
            customdata=[safe(split.name) for split in found.splits] * len(chosen),
            hovertemplate=f"%{{x:.2%}} {name} in %{{customdata}}<extra></extra>",
        )
    height = 90 + (8 if crowded else 17) * (places[-1] + 1)
    figure.update_layout(barmode="stack", bargap=0.1 if crowded else 0.15)
    figure.update_xaxes(range=[0, 1], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%", side="top")
    figure.update_yaxes(tickvals=places, ticktext=labels, autorange="reversed", tickfont={"size": 11}, showgrid=False)
    worst = ", ".join(
        f"{name} {share(of_splits[-1].missing + of_splits[-1].unknown, of_splits[-1].total)}"
        for name, of_splits in most[:5]
    )
    left_out = (
        f" Shown are the {MOST_FIELDS} of {len(fields)} fields with the most." if len(fields) > len(chosen) else ""
    )
    caption = (
        f"Missing, unknown and known values of each field ({', '.join(split.name for split in found.splits)} from top "
        f"to bottom): look for fields that hardly have a value, and for more unknown in test than in train.{left_out}"
    )
    spoken = (
        f"Stacked bars of coverage by field and split. Most missing or unknown in {found.splits[-1].name}: {worst}."
    )
    return Chart("coverage", caption, spoken, height, finished(figure, height))


def _cardinalities(found: Inspection) -> Chart | None:
    tables = sorted(found.schema.tables.items(), key=lambda item: -item[1].rows)
    if not tables:
        return None
    shown, users = tables[:MOST_FIELDS], fields_of_tables(found)
    figure = go.Figure()
    for encoding, color in (("vocabulary", BLUE), ("hash", ORANGE), ("identity", GREEN)):
        mine = [i for i, (_, table) in enumerate(shown) if table.encoding == encoding]
        if mine:
            figure.add_bar(
                x=[shown[i][1].rows for i in mine],
                y=mine,
                orientation="h",
                name=encoding,
                marker_color=color,
                customdata=[safe(", ".join(users[shown[i][0]]), 60) for i in mine],
                hovertemplate="%{x:,} rows<br>%{customdata}<extra></extra>",
                showlegend=True,
            )
    height = 90 + 20 * len(shown)
    figure.update_layout(bargap=0.2)
    figure.update_xaxes(type="log", range=[0, _log_end(tables[0][1].rows)], dtick=1, tickformat="~s", side="top")
    figure.update_yaxes(
        tickvals=[*range(len(shown))],
        ticktext=[safe(name) for name, _ in shown],
        autorange="reversed",
        tickfont={"size": 12},
        showgrid=False,
    )
    caption = (
        "Rows of each embedding table, on a log axis: the longest bars are nearly all of the model's parameters, and a "
        "table of three rows or fewer says next to nothing."
    )
    if len(tables) > len(shown):
        caption += f" Shown are the {MOST_FIELDS} largest of {len(tables)}."
    largest = ", ".join(f"{name} {count(table.rows)}" for name, table in tables[:5])
    return Chart(
        "tables", caption, f"Bars of the rows of tables. Largest: {largest}.", height, finished(figure, height)
    )


def _histories(found: Inspection) -> Chart | None:
    split = found.splits[0]
    longest = max((n.maximum for n in split.histories.values()), default=0)
    if not longest:
        return None
    figure = go.Figure()
    for i, (event, lengths) in enumerate(split.histories.items()):
        x, y = survival(lengths)
        color, dash = PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]
        figure.add_scatter(
            x=x,
            y=y,
            name=safe(event),
            mode="lines",
            line={"color": color, "dash": dash},
            legendgroup=str(i),
            hovertemplate="%{y:.2%} have %{x:,} events or more<extra>%{fullData.name}</extra>",
        )
        marks = [(p, lengths.percentile(p)) for p in PERCENTILE_MARKS if lengths.percentile(p) > 0]
        figure.add_scatter(
            x=[length for _, length in marks],
            y=[lengths.share_above(length - 1) for _, length in marks],
            text=["median" if p == 50 else f"p{p}" for p, _ in marks],
            name=safe(event),
            mode="markers",
            marker={"color": color, "size": 8},
            legendgroup=str(i),
            showlegend=False,
            hovertemplate="%{text}: %{x:,} events<extra>%{fullData.name}</extra>",
        )
    if found.max_length:
        figure.add_vline(x=found.max_length, line={"color": INK, "dash": "dash", "width": 1.5})
    upper = max(longest, found.max_length)
    steps = (1, 2, 5) if upper < 5000 else (1,)
    ticks = [step * 10**power for power in range(len(str(upper))) for step in steps]
    figure.update_xaxes(type="log", range=[-0.03, _log_end(upper)], title_text="events or more")
    figure.update_xaxes(tickvals=ticks, tickformat="~s")
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%", title_text=f"{safe(split.name)} impressions")
    caption = (
        f"Share of the {split.name} impressions that have at least so many events before them, on a log axis; points "
        "are p10, median, p90 and p99. Look for the length beyond which little is left: a longer L_max costs and gains "
        "nothing."
    )
    if found.max_length:
        caption += f" Dashed: L_max {count(found.max_length)}; just right of it, a curve's height is the share cut."
    told = "; ".join(
        f"{event} median {count(n.percentile(50))}, p99 {count(n.percentile(99))}, {share(n.share_empty)} empty"
        for event, n in split.histories.items()
    )
    spoken = f"Curves of history length by event type over {split.name} impressions: {told}."
    return Chart("histories", caption, spoken, 400, finished(figure, 400))


def _log_end(largest: int) -> float:
    """The end of a log axis from 1 that shows ``largest`` with a little room."""
    return 1.03 * max(float(np.log10(max(largest, 1))), 1.0)


def survival(lengths: Lengths) -> tuple[list[int], list[float]]:
    """Points (length from 1, share of rows with at least that), not too many and evenly apart on a log axis."""
    values = lengths.values[lengths.values > 0]
    if not values.size:
        return [1], [0.0]
    if values.size > CURVE_POINTS:
        wanted = np.geomspace(values[0], values[-1], CURVE_POINTS)
        values = values[np.unique(np.searchsorted(values, wanted * (1 - 1e-9)).clip(0, values.size - 1))]
    values = np.union1d(values, [1])
    return values.tolist(), [lengths.share_above(int(v) - 1) for v in values]
