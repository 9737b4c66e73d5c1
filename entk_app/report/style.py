"""How the report looks: colours that colour-blind readers tell apart, print sizes, one set of fonts and lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's palette without its black and yellow, which one of the two backgrounds swallows.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
#: Pale on white and on black.
GREY, PALE = "#8A8F98", "rgba(138,143,152,0.5)"
PALE_PRINT = "#C9CCD1"

#: On a dark page these take the place of those of the palette that it would swallow.
ON_DARK = {BLUE: "#3F9FDF", GREEN: "#1DBE91", VERMILLION: "#F07A2B"}

#: What has folded is blue, as in the paper.
CLASS_COLOURS = {"folded": BLUE, "partial": GREEN, "unfolded": GREY}
CLASS_WORDS = {"folded": "folded", "partial": "partially folded", "unfolded": "unfolded"}
CLASS_DASHES = {"folded": "solid", "partial": "dash", "unfolded": "solid"}

MILLIMETRE = 1.0 / 25.4
SINGLE_MM, DOUBLE_MM = 85.0, 175.0
DPI = 300

_PRINT: Any = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E5E8",
    "grid.linewidth": 0.4,
    "lines.linewidth": 0.9,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.dpi": 100.0,
    "savefig.dpi": DPI,
    # Text stays text, and the same numbers give the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "entk-app",
}


@contextmanager
def print_style() -> Iterator[None]:
    """matplotlib in the report's style while the block runs; the caller's own settings are as they were afterwards."""
    from matplotlib import rc_context

    with rc_context(_PRINT):
        yield


def new_figure(width_mm: float, height_mm: float) -> Figure:
    """An empty figure of this size on paper, its parts kept apart."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_mm * MILLIMETRE, height_mm * MILLIMETRE), layout="constrained")


def rmsd_map() -> Any:
    """matplotlib's colours of RMSD: viridis without its palest end."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("rmsd", colormaps["viridis"](np.linspace(0.0, 0.88, 64)))


def colour_scale(low: float, high: float) -> list[list[float | str]]:
    """A part of viridis as plotly takes it."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    places = np.linspace(0.0, 1.0, 12)
    return [[float(x), to_hex(colormaps["viridis"](low + x * (high - low)))] for x in places]


def themes() -> dict[str, dict[str, Any]]:
    """plotly templates: what of a figure's look depends on the page being light or dark."""
    return {
        "light": _theme("#1C2024", "#5A626C", "#E3E6EA", "#B9BFC7", "#FFFFFF", colour_scale(0.0, 0.88)),
        "dark": _theme("#E8EAED", "#A4ABB5", "#2B3038", "#4A515C", "#1A1D22", colour_scale(0.2, 1.0)),
    }


def _theme(ink: str, soft: str, grid: str, line: str, card: str, scale: list[list[float | str]]) -> dict[str, Any]:
    axis = {
        "gridcolor": grid, "linecolor": line, "zerolinecolor": grid, "tickcolor": line, "showline": True,
        "ticks": "outside", "ticklen": 4, "title": {"font": {"size": 13}, "standoff": 8}, "automargin": True,
        "zeroline": False,
    }  # fmt: skip
    space = {
        "gridcolor": grid, "linecolor": line, "zerolinecolor": line, "showbackground": False,
        "title": {"font": {"size": 12}}, "tickfont": {"size": 10, "color": soft},
    }  # fmt: skip
    return {
        "layout": {
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(CYCLE),
            "xaxis": axis,
            "yaxis": axis,
            "scene": {"xaxis": space, "yaxis": space, "zaxis": space},
            "coloraxis": {"colorscale": scale, "colorbar": {"outlinewidth": 0, "thickness": 12, "ticks": "outside"}},
            "hoverlabel": {"bgcolor": card, "bordercolor": line, "font": {"color": ink}},
            "legend": {"bgcolor": "rgba(0,0,0,0)"},
            "annotationdefaults": {"font": {"color": soft, "size": 11}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": soft, "activecolor": ink},
        }
    }
