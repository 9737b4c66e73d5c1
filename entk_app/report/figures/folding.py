"""RMSD to the native structure: over time, and how often (the paper's figures 2A, 2B, 3A, 3B)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entk_app.classes import FOLD_CLASSES
from entk_app.report import paper, style
from entk_app.report.data import ReportData, classify
from entk_app.report.figure import Figure, Missing, Table
from entk_app.report.figures.common import (
    FRAME_HOVER,
    LEGEND_ABOVE,
    choose_time_unit,
    count_parts,
    describe_limits,
    draw_limits,
    explain_no_rmsd,
    identify,
    shape_limits,
    with_gaps,
)
from entk_app.report.sample import sample_series

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

#: About so many points of all simulations are drawn, and so many of each at least.
_MAX_POINTS = 24_000
_MIN_POINTS = 40

_HOW = "of every stretch of time the lowest and the highest, so that no extreme is lost"


def build_progress(data: ReportData) -> Iterator[Figure | Missing]:
    """The lowest RMSD so far over what all simulations together had simulated."""
    title = "Lowest RMSD so far"
    if data.rmsd is None:
        yield Missing("progress", title, explain_no_rmsd(data))
        return
    frames, order = data.frames, np.argsort(data.frames.unix, kind="stable")
    lowest = np.minimum.accumulate(data.rmsd[order])
    steps = np.flatnonzero(np.diff(lowest, prepend=np.inf))
    rows = order[steps]
    total = float(frames.aggregate_ps.max())
    unit, picoseconds = choose_time_unit(total)
    x = np.append(frames.aggregate_ps[rows], total) / picoseconds
    y = np.append(lowest[steps], lowest[-1])
    iterations = np.unique(frames.iteration)
    starts = np.array([frames.aggregate_ps[frames.iteration == i].min() for i in iterations]) / picoseconds

    def draw() -> Drawing:
        figure = style.new_figure(style.SINGLE_MM, 60)
        ax = figure.subplots()
        for start in starts if len(starts) <= 60 else ():
            ax.axvline(start, color="#E3E5E8", linewidth=0.5, zorder=0.5)
        draw_limits(data, ax)
        ax.step(x, y, where="post", color=style.VERMILLION)
        ax.plot(x[:-1], y[:-1], "o", markersize=2.5, color=style.VERMILLION)
        ax.set(xlabel=f"simulated in all ({unit})", ylabel="lowest RMSD so far (Å)", ylim=(0, None))
        ax.grid(axis="x", visible=False)
        return figure

    yield Figure(
        name="progress",
        title=title,
        caption="The lowest RMSD of all frames by the time that all simulations together had simulated; a point where "
        "it fell. " + describe_limits(data),
        table=Table({
            "aggregate_ps": frames.aggregate_ps[rows], "rmsd_angstrom": data.rmsd[rows],
            "iteration": frames.iteration[rows], "simulation": frames.simulation[rows],
            "segment": frames.segment[rows], "frame": frames.frame[rows],
        }),
        draw=draw,
        traces=[{
            "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "showlegend": False,
            "line": {"shape": "hv", "color": style.VERMILLION, "width": 2}, "marker": {"size": 6},
            "customdata": identify(frames, np.append(rows, rows[-1])),
            "hovertemplate": f"%{{y:.2f}} Å after %{{x:.4g}} {unit}<br>{FRAME_HOVER}<extra></extra>",
        }],
        layout={
            "xaxis": {"title": {"text": f"simulated in all ({unit})"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "lowest RMSD so far (Å)"}, "rangemode": "tozero"},
            "shapes": shape_limits(data), "legend": LEGEND_ABOVE, "showlegend": True,
        },
        height=340,
    )  # fmt: skip


def build_rmsd(data: ReportData) -> Iterator[Figure | Missing]:
    """Every simulation's RMSD, end to end and each from its own start."""
    titles = {
        "rmsd-aggregate": "RMSD of every simulation, end to end",
        "rmsd-own": "RMSD of every simulation, each from its start",
    }
    if data.rmsd is None:
        yield from (Missing(name, title, explain_no_rmsd(data)) for name, title in titles.items())
        return
    frames = data.frames
    rows_of = {
        number: rows.start + sample_series(
            data.rmsd[rows], max(_MIN_POINTS, _MAX_POINTS * (rows.stop - rows.start) // len(frames))
        )
        for number, rows in frames.rows_of.items()
    }  # fmt: skip
    lengths = [float(frames.time_ps[rows.stop - 1]) for rows in frames.rows_of.values()]
    before = dict(zip(frames.rows_of, np.cumsum([0.0, *lengths[:-1]]), strict=True))
    n_shown = sum(len(rows) for rows in rows_of.values())
    said = count_parts(n_shown, len(frames), "frames", _HOW)
    known = next((row for row in paper.ROWS if row.system == data.system.name and row.productive_angstrom), None)
    colours = (
        f"Productive simulations, those that reached the partially folded ({data.limits.partial:.3g} Å) or the folded "
        f"state ({data.limits.folded:.3g} Å; limits: {data.limits.source}), are in colour, the rest is grey. "
        + ("" if known is None else f"The paper calls those productive that reached {known.productive_angstrom} Å. ")
        + said
    )
    for name, shift, label, longest, text in (
        ("rmsd-aggregate", before, "aggregate simulated time", sum(lengths),
         "Simulations one after the other in the order of their numbers."),
        ("rmsd-own", dict.fromkeys(before, 0.0), "time since the simulation's start", max(lengths),
         "Simulations over their own time."),
    ):  # fmt: skip
        yield _build_series(data, name, titles[name], f"{text} {colours}", label, longest, rows_of, shift)


def _build_series(
    data: ReportData,
    name: str,
    title: str,
    caption: str,
    label: str,
    longest_ps: float,
    rows_of: Mapping[int, NDArray[np.intp]],
    shift: Mapping[int, float],
) -> Figure:
    frames, rmsd = data.frames, data.rmsd
    assert rmsd is not None
    unit, picoseconds = choose_time_unit(longest_ps)
    classes: dict[str, list[int]] = {fold_class: [] for fold_class in FOLD_CLASSES}
    for number, rows in frames.rows_of.items():
        classes[classify(float(rmsd[rows].min()), data.limits)].append(number)
    lines = {
        number: ((shift[number] + frames.time_ps[rows]) / picoseconds, rmsd[rows], identify(frames, rows))
        for number, rows in rows_of.items()
    }

    def draw() -> Drawing:
        figure = style.new_figure(style.DOUBLE_MM, 65)
        ax = figure.subplots()
        for fold_class in reversed(FOLD_CLASSES):
            for place, number in enumerate(classes[fold_class]):
                ax.plot(
                    *lines[number][:2], linewidth=0.5, rasterized=True,
                    color=style.PALE_PRINT if fold_class == "unfolded" else style.CLASS_COLOURS[fold_class],
                    label=None if place else _name_class(fold_class, classes),
                )  # fmt: skip
        draw_limits(data, ax)
        ax.set(xlabel=f"{label} ({unit})", ylabel="RMSD to native (Å)", ylim=(0, None))
        ax.margins(x=0.01)
        figure.legend(loc="outside upper left", ncols=3)
        return figure

    traces: list[dict[str, Any]] = []
    for fold_class in reversed(FOLD_CLASSES):
        numbers = classes[fold_class]
        if numbers:
            traces.append({
                "type": "scatter", "mode": "lines", "name": _name_class(fold_class, classes),
                "x": with_gaps([lines[n][0] for n in numbers]).astype("f4"),
                "y": with_gaps([lines[n][1] for n in numbers]).astype("f4"),
                "customdata": with_gaps([lines[n][2] for n in numbers], 0).astype("i4"),
                "line": {
                    "color": style.PALE if fold_class == "unfolded" else style.CLASS_COLOURS[fold_class], "width": 1.1
                },
                "hovertemplate": f"{FRAME_HOVER}<br>%{{y:.2f}} Å at %{{x:.4g}} {unit}<extra></extra>",
            })  # fmt: skip
    shown = np.concatenate(list(rows_of.values()))
    simulation_of = np.repeat(list(rows_of), [len(rows) for rows in rows_of.values()])
    class_of = {number: fold_class for fold_class, members in classes.items() for number in members}
    return Figure(
        name=name,
        title=title,
        caption=caption,
        table=Table({
            "simulation": frames.simulation[shown], "segment": frames.segment[shown], "frame": frames.frame[shown],
            "time_ps": frames.time_ps[shown],
            "drawn_at_ps": frames.time_ps[shown] + np.array([shift[int(n)] for n in simulation_of]),
            "rmsd_angstrom": rmsd[shown], "simulation_reached": [class_of[int(n)] for n in simulation_of],
        }),
        draw=draw,
        traces=traces,
        layout={
            "xaxis": {"title": {"text": f"{label} ({unit})"}}, "hovermode": "closest",
            "yaxis": {"title": {"text": "RMSD to native (Å)"}, "rangemode": "tozero"}, "legend": LEGEND_ABOVE,
            "shapes": shape_limits(data), "showlegend": True,
        },
    )  # fmt: skip


def _name_class(fold_class: str, classes: Mapping[str, list[int]]) -> str:
    n, verb = len(classes[fold_class]), "stayed" if fold_class == "unfolded" else "reached"
    return f"{n} simulation{'s' if n != 1 else ''} {verb} {style.CLASS_WORDS[fold_class]}"


def build_histogram(data: ReportData) -> Iterator[Figure | Missing]:
    """How many frames at which RMSD, with the limits of the classes."""
    title = "How often each RMSD"
    if data.rmsd is None:
        yield Missing("rmsd-histogram", title, explain_no_rmsd(data))
        return
    rmsd, limits = data.rmsd, data.limits
    highest = float(rmsd.max())
    width = next(w for w in (0.1, 0.2, 0.5, 1.0, 10.0, np.inf) if highest / w <= 250)
    edges = width * np.arange(int(highest / width) + 2)
    counts, _ = np.histogram(rmsd, edges)
    kept = slice(max(0, int(np.flatnonzero(counts)[0]) - 1), None)
    left, counts = edges[:-1][kept], counts[kept]
    centres, share = left + width / 2.0, 100.0 * counts / len(rmsd)
    class_of = np.array([classify(centre, limits) for centre in centres])
    members = {
        "folded": int((rmsd <= limits.folded).sum()),
        "partial": int(((rmsd > limits.folded) & (rmsd <= limits.partial)).sum()),
        "unfolded": int((rmsd > limits.partial).sum()),
    }
    known = next((row for row in paper.ROWS if row.system == data.system.name and row.unfolded_angstrom), None)

    def draw() -> Drawing:
        figure = style.new_figure(style.SINGLE_MM, 60)
        ax = figure.subplots()
        for fold_class in FOLD_CLASSES:
            chosen = class_of == fold_class
            ax.bar(
                centres[chosen], share[chosen], width, color=style.CLASS_COLOURS[fold_class],
                label=style.CLASS_WORDS[fold_class],
            )  # fmt: skip
        draw_limits(data, ax, horizontal=False)
        ax.set(xlabel="RMSD to native (Å)", ylabel=f"share of frames (% a {width:g} Å)")
        figure.legend(loc="outside upper left", ncols=3)
        return figure

    yield Figure(
        name="rmsd-histogram",
        title=title,
        caption=f"All {len(rmsd):,} frames. {describe_limits(data)} "
        + "; ".join(
            f"{style.CLASS_WORDS[name]}: {count:,} frames ({100.0 * count / len(rmsd):.1f} %)"
            for name, count in members.items()
        )
        + "."
        + ("" if known is None else f" The paper: beyond {known.unfolded_angstrom} Å the unfolded state only."),
        table=Table({
            "from_angstrom": left, "to_angstrom": left + width, "n_frames": counts, "percent": share,
            "class_of_centre": class_of,
        }),
        draw=draw,
        traces=[
            {
                "type": "bar", "x": centres[class_of == name], "y": share[class_of == name], "name":
                style.CLASS_WORDS[name], "width": width, "marker": {"color": style.CLASS_COLOURS[name]},
                "customdata": counts[class_of == name],
                "hovertemplate": "%{x:.2f} Å: %{y:.2f} %, %{customdata} frames<extra></extra>",
            }
            for name in FOLD_CLASSES if (class_of == name).any()
        ],
        layout={
            "xaxis": {"title": {"text": "RMSD to native (Å)"}}, "bargap": 0.0, "legend": LEGEND_ABOVE,
            "yaxis": {"title": {"text": f"share of frames (% a {width:g} Å)"}},
            "shapes": shape_limits(data, horizontal=False),
        },
        height=360,
    )  # fmt: skip
