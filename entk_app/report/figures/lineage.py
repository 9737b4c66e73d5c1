"""Which simulation came from which outlier, when, and how each ended: a tree over time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from entk_app.classes import FOLD_CLASSES
from entk_app.report import style
from entk_app.report.data import ReportData, SimulationLife
from entk_app.report.figure import Figure, Missing, Table
from entk_app.report.figures.common import LEGEND_ABOVE, NO_FRAMES, choose_clock_unit, with_gaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

#: How a simulation ended: marker of plotly, of matplotlib, colour, words.
_ENDS = {
    "purge": ("x", "x", style.VERMILLION, "purged"),
    "end": ("square", "s", style.GREY, "ended"),
    None: ("triangle-right", ">", style.GREEN, "not ended"),
}


def build_lineage(data: ReportData) -> Iterator[Figure | Missing]:
    """A line for each simulation's life, joined to the frame that it started from."""
    lives, title = data.lives, "Where simulations came from"
    if not lives:
        yield Missing("lineage", title, NO_FRAMES)
        return
    frames = data.frames
    span = float(data.to_working_hours(max(life.unix_end for life in lives)))
    unit, hours = choose_clock_unit(span)

    def at(unix: float) -> float:
        return float(data.to_working_hours(unix)) / hours

    begin = {life.simulation: at(life.unix_begin) for life in lives}
    end = {life.simulation: at(life.unix_end) for life in lives}
    joins = []
    for life in lives:
        row = None if life.origin is None else frames.find_row(life.origin)
        if row is not None and life.origin is not None:
            joins.append((at(frames.unix[row]), life.origin.simulation, begin[life.simulation], life.simulation))
    classes: dict[str | None, list[SimulationLife]] = {
        fold_class: [life for life in lives if life.fold_class == fold_class] for fold_class in (*FOLD_CLASSES, None)
    }
    best = None if data.best_row is None else (at(frames.unix[data.best_row]), int(frames.simulation[data.best_row]))
    # The first above, and room for the lines at both ends.
    edges = (max(begin) + 0.7, min(begin) - 0.7)
    names: dict[str | None, str] = dict(style.CLASS_WORDS) | {None: "simulations"}  # type: ignore[dict-item]
    colours: dict[str | None, str] = dict(style.CLASS_COLOURS) | {None: style.BLUE}  # type: ignore[dict-item]

    def draw() -> Drawing:
        from matplotlib.ticker import MaxNLocator

        figure = style.new_figure(style.DOUBLE_MM, float(np.clip(30 + 3.2 * len(lives), 55, 220)))
        ax = figure.subplots()
        for place, (x0, parent, x1, child) in enumerate(joins):
            ax.plot([x0, x1], [parent, child], color="#9AA0A8", linewidth=0.5, zorder=1,
                    label=None if place else "from outlier")  # fmt: skip
            ax.plot(x0, parent, "o", markersize=1.8, color="#6B7280", zorder=1.5)
        for fold_class, members in classes.items():
            for place, life in enumerate(members):
                n = life.simulation
                ax.plot([begin[n], end[n]], [n, n], color=colours[fold_class], linewidth=2.0, solid_capstyle="butt",
                        label=None if place else names[fold_class])  # fmt: skip
        for kind, (_, marker, colour, word) in _ENDS.items():
            at_end = [life.simulation for life in lives if life.end == kind]
            if at_end:
                ax.plot([end[n] for n in at_end], at_end, marker, color=colour, markersize=3.2, label=word, zorder=3)
        if best is not None:
            ax.plot(*best, "*", color=style.VERMILLION, markersize=7, label="lowest RMSD", zorder=4)
        ax.set(xlabel=f"time since the campaign began ({unit})", ylabel="simulation")
        ax.set_ylim(*edges)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=8)
        return figure

    def line(fold_class: str | None, members: list[SimulationLife]) -> dict[str, Any]:
        texts: list[str] = []
        for life in members:
            lowest = "" if life.min_rmsd_angstrom is None else f", lowest {life.min_rmsd_angstrom:.2f} Å"
            said = f"simulation {life.simulation}: {life.time_ps / 1000:.4g} ns{lowest}<br>{life.reason}"
            texts += [said + (f"<br>{life.end}: {life.end_reason}" if life.end else "")] * 2 + [""]
        return {
            "type": "scatter", "mode": "lines", "name": names[fold_class],
            "line": {"color": colours[fold_class], "width": 5 if len(lives) < 60 else 2.5},
            "x": with_gaps([np.array([begin[life.simulation], end[life.simulation]]) for life in members]),
            "y": with_gaps([np.full(2, float(life.simulation)) for life in members]),
            "text": texts[:-1], "hovertemplate": "%{text}<extra></extra>",
        }  # fmt: skip

    traces: list[dict[str, Any]] = []
    if joins:
        traces.append({
            "type": "scatter", "mode": "lines", "name": "from outlier", "line": {"color": style.GREY, "width": 1},
            "x": with_gaps([np.array([x0, x1]) for x0, _, x1, _ in joins]),
            "y": with_gaps([np.array([float(parent), float(child)]) for _, parent, _, child in joins]),
            "hoverinfo": "skip",
        })  # fmt: skip
    traces += [line(fold_class, members) for fold_class, members in reversed(classes.items()) if members]
    for kind, (symbol, _, colour, word) in _ENDS.items():
        at_end = [life for life in lives if life.end == kind]
        if at_end:
            traces.append({
                "type": "scatter", "mode": "markers", "name": word,
                "marker": {"symbol": symbol, "color": colour, "size": 9 if len(lives) < 60 else 6},
                "x": [end[life.simulation] for life in at_end], "y": [life.simulation for life in at_end],
                "text": [life.end_reason or "still in the campaign at its last decision" for life in at_end],
                "hovertemplate": "simulation %{y}: %{text}<extra></extra>",
            })  # fmt: skip
    if best is not None:
        traces.append({
            "type": "scatter", "mode": "markers", "name": "lowest RMSD", "x": [best[0]], "y": [best[1]],
            "marker": {"symbol": "star", "size": 14, "color": style.VERMILLION},
            "hovertemplate": "lowest RMSD<extra></extra>",
        })  # fmt: skip
    origins = [life.origin for life in lives]
    yield Figure(
        name="lineage",
        title=title,
        caption="A line a simulation, in the colour of the class that its lowest RMSD reached; a thin line leads from "
        "the frame that it started from, an outlier of its parent. Simulations without one began at the initial "
        "structure. Time is the campaign's own: that between its pilots is cut out.",
        table=Table({
            "simulation": [life.simulation for life in lives],
            **{f"origin_{key}": [None if o is None else getattr(o, key) for o in origins]
               for key in ("simulation", "segment", "frame")},
            "began_hours": [begin[life.simulation] * hours for life in lives],
            "ended_hours": [end[life.simulation] * hours for life in lives],
            "time_ps": [life.time_ps for life in lives], "n_frames": [life.n_frames for life in lives],
            "min_rmsd_angstrom": [life.min_rmsd_angstrom for life in lives],
            "reached": [life.fold_class for life in lives], "end": [life.end for life in lives],
            "started_because": [life.reason for life in lives], "ended_because": [life.end_reason for life in lives],
        }),
        draw=draw,
        traces=traces,
        layout={
            "xaxis": {"title": {"text": f"time since the campaign began ({unit})"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "simulation"}, "range": edges, "tickformat": "d",
                      **({"dtick": 1} if len(lives) <= 15 else {})},
            "legend": LEGEND_ABOVE, "hovermode": "closest",
        },
        height=int(np.clip(200 + 18 * len(lives), 340, 900)),
    )  # fmt: skip
