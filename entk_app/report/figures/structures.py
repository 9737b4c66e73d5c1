"""Structures that stand for folded, partially folded and unfolded, on the native one (the paper's figure 2F)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entk_app.report import style
from entk_app.report.data import ReportData, Representative, classify
from entk_app.report.figure import Figure, Missing, Table
from entk_app.report.figures.common import explain_no_rmsd

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_CLASSES = ("folded", "partial", "unfolded")


def build_structures(data: ReportData) -> Iterator[Figure | Missing]:
    """A CA trace over the native one for each of the representatives."""
    if data.rmsd is None or data.native_ca is None:
        reason = explain_no_rmsd(data) if data.rmsd is None else "The native structure cannot be read."
        yield Missing("structures", "Representative structures", reason)
        return
    shown = {item.name: item for item in data.representatives}
    for name in ("lowest", *_CLASSES):
        item = shown.get(name)
        if item is not None:
            yield _build_structure(data, item, data.native_ca)
        else:
            is_lost = name == "lowest" or _has(data, name)
            reason = "Its trajectory cannot be read." if is_lost else f"No frame is {style.CLASS_WORDS[name]}."
            yield Missing(f"structure-{name}", _title(name), reason, "structures")


def _title(name: str) -> str:
    return "Lowest RMSD" if name == "lowest" else style.CLASS_WORDS[name].capitalize()


def _has(data: ReportData, name: str) -> bool:
    low, high = data.limits.find_range(name)  # type: ignore[arg-type]
    rmsd = data.rmsd
    assert rmsd is not None
    return bool(((rmsd > (low or -np.inf)) & (rmsd <= (np.inf if high is None else high))).any())


def _build_structure(data: ReportData, item: Representative, native: NDArray[np.floating]) -> Figure:
    trace = item.positions[data.ca]
    colour = style.CLASS_COLOURS[classify(item.rmsd_angstrom, data.limits)]
    which = "the lowest RMSD of all" if item.name == "lowest" else "nearest to the median RMSD of its class"
    residues = np.arange(1, len(native) + 1)
    names = list(data.system.sequence) if len(data.system.sequence) == len(native) else [""] * len(native)

    def line(positions: NDArray[np.floating], label: str, colour: str, width: float) -> dict[str, Any]:
        return {
            "type": "scatter3d", "mode": "lines+markers", "name": label, "line": {"color": colour, "width": width},
            "marker": {"size": 2.5, "color": colour}, "text": [f"{n}{i}" for n, i in zip(names, residues, strict=True)],
            "hovertemplate": "%{text}<extra>" + label + "</extra>",
            **{axis: positions[:, k].astype("f4") for k, axis in enumerate("xyz")},
        }  # fmt: skip

    hidden = {"visible": False}
    return Figure(
        name=f"structure-{item.name}",
        title=f"{_title(item.name)}: {item.rmsd_angstrom:.2f} Å",
        caption=f"CA trace of {item.ref}, {which}, superposed on the native structure. "
        f"All atoms: structure-{item.name}.pdb.",
        table=Table({
            "residue": residues, "letter": names,
            **{f"{axis}_angstrom": trace[:, k] for k, axis in enumerate("xyz")},
            **{f"native_{axis}_angstrom": native[:, k] for k, axis in enumerate("xyz")},
        }),
        draw=partial(_draw, trace, native, colour),
        traces=[line(native, "native", style.ORANGE, 5), line(trace, "frame", colour, 7)],
        layout={
            "scene": {"aspectmode": "data", "xaxis": hidden, "yaxis": hidden, "zaxis": hidden,
                      "camera": {"eye": {"x": 1.1, "y": 1.1, "z": 0.6}}},
            "margin": {"l": 0, "r": 0, "t": 28, "b": 0},
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        },
        height=320,
        place="structures",
    )  # fmt: skip


def _draw(trace: NDArray[np.floating], native: NDArray[np.floating], colour: str) -> Drawing:
    figure = style.new_figure(style.SINGLE_MM, 70)
    ax: Any = figure.add_subplot(projection="3d")
    # Seen across the longest axis of the native structure.
    _, _, axes = np.linalg.svd(native - native.mean(axis=0), full_matrices=False)
    seen = [(positions - native.mean(axis=0)) @ axes.T for positions in (native, trace)]
    for points, label, shade, width in zip(seen, ("native", "frame"), (style.ORANGE, colour), (1.4, 2.0), strict=True):
        ax.plot(*points.T, color=shade, linewidth=width, label=label, marker="o", markersize=2)
    every = np.concatenate(seen)
    low, high = every.min(axis=0), every.max(axis=0)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    ax.set_box_aspect(high - low, zoom=1.15)
    ax.set_axis_off()
    ax.view_init(elev=20, azim=-70)
    figure.legend(loc="outside upper left", ncols=2)
    return figure
