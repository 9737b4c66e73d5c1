"""Contact maps: native, mean of all frames, and of the frame with the lowest RMSD."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from entk_app.report import style
from entk_app.report.data import ReportData
from entk_app.report.figure import Figure, Missing, Table
from entk_app.report.figures.common import NO_FRAMES, NO_REFERENCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def build_contact_maps(data: ReportData) -> Iterator[Figure | Missing]:
    """A map each."""
    contacts = data.contacts
    reference = "The native structure cannot be read." if data.system.has_native else NO_REFERENCE
    best = None if data.best_row is None else f"{data.frames.ref(data.best_row)}, the lowest RMSD"
    for name, title, what, reason in (
        ("native", "Contacts of the native structure", "the native structure", reference),
        ("mean", "Contacts of all frames", f"all {len(data.frames):,} frames: how often", NO_FRAMES),
        ("best", "Contacts at the lowest RMSD", best or "", reference),
    ):
        found = None if contacts is None else getattr(contacts, name)
        if contacts is None or found is None:
            yield Missing(f"contacts-{name}", title, NO_FRAMES if contacts is None else reason, "contacts")
        else:
            yield _build_map(f"contacts-{name}", title, what, np.asarray(found, dtype=float), contacts.cutoff_angstrom)


def _build_map(name: str, title: str, what: str, values: NDArray[np.float64], cutoff: float) -> Figure:
    n = len(values)
    residues = np.arange(1, n + 1)
    first, second = np.triu_indices(n, k=1)
    label = "share of frames in contact" if name == "contacts-mean" else "in contact (0 or 1)"
    return Figure(
        name=name,
        title=title,
        caption=f"CA atoms nearer than {cutoff:g} Å; of {what}.",
        table=Table({"residue": first + 1, "other_residue": second + 1, "contact": values[first, second]}),
        draw=partial(_draw, values, label),
        traces=[{
            "type": "heatmap", "z": values.astype("f4"), "x": residues, "y": residues, "coloraxis": "coloraxis",
            "hovertemplate": "residues %{x} and %{y}: %{z:.3f}<extra></extra>",
        }],
        layout={
            "xaxis": {"title": {"text": "residue"}, "constrain": "domain", "showgrid": False},
            "yaxis": {"title": {"text": "residue"}, "scaleanchor": "x", "autorange": "reversed", "constrain": "domain",
                      "showgrid": False},
            "coloraxis": {
                "cmin": 0, "cmax": 1,
                "colorbar": {"title": {"text": label, "side": "right"}, "len": 0.9},
            },
            "margin": {"t": 30, "r": 8, "l": 50, "b": 46},
        },
        height=340,
        scale="contacts",
        place="contacts",
    )  # fmt: skip


def _draw(values: NDArray[np.float64], label: str) -> Drawing:
    from matplotlib.colors import LinearSegmentedColormap

    figure = style.new_figure(style.SINGLE_MM, 70)
    ax = figure.subplots()
    n = len(values)
    colours = LinearSegmentedColormap.from_list("contacts", ["#FFFFFF", style.BLUE])
    edges = (0.5, n + 0.5, n + 0.5, 0.5)
    image = ax.imshow(values, cmap=colours, vmin=0, vmax=1, extent=edges, interpolation="nearest")
    ax.grid(visible=False)
    ax.set(xlabel="residue", ylabel="residue")
    figure.colorbar(image, ax=ax, label=label, shrink=0.85)
    return figure
