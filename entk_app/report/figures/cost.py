"""What the pilots' time went into: the accounting's numbers and its figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from entk_app.accounting import KINDS, Parts
from entk_app.accounting_report import render_tasks
from entk_app.gantt import COLOURS, draw_figure
from entk_app.report import style
from entk_app.report.data import ReportData
from entk_app.report.figure import Figure, Missing, Table
from entk_app.report.figures.common import LEGEND_ABOVE

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_NO_TRACE = "No pilot has left a trace that can be read."
_IDLE = {"start-up": "#9AA0A8", "overhead": "#5A626C", "idle": "#D5D8DC", "shutdown": "#B9BFC7"}


def build_hours(data: ReportData) -> Iterator[Figure | Missing]:
    """Shares of the pilots' core-hours and GPU-hours."""
    title = "Where the pilots' hours went"
    if data.account is None:
        yield Missing("hours", title, _NO_TRACE)
        return
    devices = [("core-hours", data.account.core_hours)]
    if data.account.gpu_hours.whole:
        devices.append(("GPU-hours", data.account.gpu_hours))
    parts = {name: _list_parts(hours) for name, hours in devices}
    kinds = list(dict.fromkeys(kind for listed in parts.values() for kind in listed))
    colours = {**COLOURS, **_IDLE}
    wholes = {name: hours.whole or 1.0 for name, hours in devices}

    def draw() -> Drawing:
        figure = style.new_figure(style.DOUBLE_MM, 26 + 10 * len(devices))
        ax = figure.subplots()
        for place, (name, listed) in enumerate(parts.items()):
            left = 0.0
            for kind in kinds:
                share = 100.0 * listed.get(kind, 0.0) / wholes[name]
                ax.barh(place, share, left=left, height=0.65, color=colours[kind], label=None if place else kind)
                left += share
        ax.set(xlabel="share of the pilots' time (%)", xlim=(0, 100))
        ax.set_yticks(range(len(parts)), list(parts))
        ax.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=8)
        return figure

    traces: list[dict[str, Any]] = [
        {
            "type": "bar", "orientation": "h", "name": kind, "y": list(parts), "marker": {"color": colours[kind]},
            "x": [100.0 * listed.get(kind, 0.0) / wholes[name] for name, listed in parts.items()],
            "customdata": [listed.get(kind, 0.0) for listed in parts.values()],
            "hovertemplate": f"{kind}: %{{x:.1f}} %, %{{customdata:.4g}} %{{y}}<extra></extra>",
        }
        for kind in kinds
    ]  # fmt: skip
    yield Figure(
        name="hours",
        title=title,
        caption="From RADICAL-Pilot's profiles, as entk-app accounting counts them: "
        + "; ".join(f"{hours.whole:.4g} {name}, {100.0 * hours.in_use / (hours.whole or 1.0):.0f} % in use"
                    for name, hours in devices)
        + ". A core is what RADICAL-Pilot counts: a hardware thread where nodes have several a core.",
        table=Table({
            "device": [name for name in parts for _ in parts[name]],
            "part": [kind for listed in parts.values() for kind in listed],
            "hours": [value for listed in parts.values() for value in listed.values()],
        }),
        draw=draw,
        traces=traces,
        layout={
            "barmode": "stack", "xaxis": {"title": {"text": "share of the pilots' time (%)"}, "range": [0, 100]},
            "yaxis": {"automargin": True, "showgrid": False}, "legend": LEGEND_ABOVE | {"traceorder": "normal"},
        },
        height=180 + 50 * len(devices),
    )  # fmt: skip


def _list_parts(hours: Parts) -> dict[str, float]:
    return {
        "start-up": hours.start_up,
        **{kind: hours.of_kind(kind) for kind in KINDS if kind in hours.use},
        "overhead": hours.overhead,
        "idle": hours.idle,
        "shutdown": hours.shutdown,
    }


def build_timeline(data: ReportData) -> Iterator[Figure | Missing]:
    """The accounting's own figure: tasks on devices over utilisation."""
    title = "Tasks on devices"
    usage = data.usage
    if usage is None:
        yield Missing("timeline", title, _NO_TRACE)
        return
    rows = list(csv.reader(io.StringIO(render_tasks(usage))))
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True) if len(rows) > 1 else [()] * len(rows[0]), strict=True))
    yield Figure(
        name="timeline",
        title=title,
        caption="Which task held which device, over the share of devices in use; as entk-app accounting draws it.",
        table=Table(columns),
        draw=lambda: draw_figure(usage, ""),
        place="wide",
    )
