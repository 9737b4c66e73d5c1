"""What several figures share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from entk_app.report.data import FrameColumns, ReportData
from entk_app.report.style import BLUE, CLASS_WORDS, GREEN

#: What a reader is told of a frame under the pointer.
FRAME_HOVER = "simulation %{customdata[0]} segment %{customdata[1]} frame %{customdata[2]}"

NO_REFERENCE = "There is no native structure (--reference FILE), so that frames have no RMSD."
NO_FRAMES = "No segment is whole yet."


def choose_time_unit(longest_ps: float) -> tuple[str, float]:
    """A unit in which this reads well, and its picoseconds."""
    for unit, picoseconds in (("µs", 1e6), ("ns", 1e3)):
        if longest_ps >= picoseconds:
            return unit, picoseconds
    return "ps", 1.0


def choose_clock_unit(longest_hours: float) -> tuple[str, float]:
    """Likewise for the clock: a unit and its hours."""
    for unit, hours in (("d", 24.0), ("h", 1.0)):
        if longest_hours >= 2.0 * hours:
            return unit, hours
    return "min", 1.0 / 60.0


def identify(frames: FrameColumns, rows: NDArray[np.intp]) -> NDArray[np.int32]:
    """Simulation, segment and frame of these rows, shape (n_rows, 3)."""
    return np.stack([frames.simulation[rows], frames.segment[rows], frames.frame[rows]], axis=1).astype(np.int32)


def explain_no_rmsd(data: ReportData) -> str:
    """Why there is no RMSD."""
    if not len(data.frames):
        return NO_FRAMES
    return NO_REFERENCE if not data.system.has_native else "Some frames have no RMSD."


def count_parts(n_shown: int, n_all: int, what: str, how: str) -> str:
    """A sentence that says what of it is drawn."""
    if n_shown == n_all:
        return f"All {n_all:,} {what}."
    return f"{n_shown:,} of {n_all:,} {what} are drawn: {how}."


def draw_limits(data: ReportData, ax: Any, horizontal: bool = True) -> None:
    """The class limits as lines."""
    line = ax.axhline if horizontal else ax.axvline
    line(data.limits.folded, color=BLUE, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1.5)
    line(data.limits.partial, color=GREEN, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1.5)


def shape_limits(data: ReportData, horizontal: bool = True) -> list[dict[str, Any]]:
    """The class limits as plotly's shapes."""
    shapes = []
    for limit, colour, name in (
        (data.limits.folded, BLUE, "folded"), (data.limits.partial, GREEN, "partial")
    ):  # fmt: skip
        ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": limit, "y1": limit}
        if not horizontal:
            ends = {"y0": 0, "y1": 1, "yref": "paper", "x0": limit, "x1": limit}
        shapes.append({
            "type": "line", **ends, "layer": "above", "line": {"color": colour, "width": 1.3, "dash": "dash"},
            "showlegend": True, "name": f"{CLASS_WORDS[name]}: ≤ {limit:.3g} Å",
        })  # fmt: skip
    return shapes


def describe_limits(data: ReportData) -> str:
    """The class limits in a sentence."""
    limits = data.limits
    return (
        f"Folded: RMSD up to {limits.folded:.3g} Å; partially folded: up to {limits.partial:.3g} Å; unfolded: beyond "
        f"(limits: {limits.source})."
    )


def with_gaps(parts: list[NDArray], gap: float = np.nan) -> NDArray[np.floating]:
    """Lines as one, with a gap between them."""
    separated: list[NDArray] = []
    for part in parts:
        separated += [part, np.full((1, *part.shape[1:]), gap)]
    return np.concatenate(separated[:-1]) if separated else np.empty(0)


LEGEND_ABOVE: dict[str, Any] = {
    "orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"
}  # fmt: skip
