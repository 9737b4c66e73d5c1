"""What a figure is: its numbers, how it is drawn for print, and how it is drawn on the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from entk_app.report.style import print_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

#: Significant digits of the numbers in a table.
_DIGITS = 10


@dataclass(frozen=True)
class Table:
    """Columns by name, arrays or sequences of one length; a name ends in its unit."""

    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def to_csv(self) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(zip(*(map(_to_text, column) for column in self.columns.values()), strict=True))
        return stream.getvalue()


def _to_text(value: Any) -> str:
    """As short as can be without losing what matters; nothing for what is not known."""
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.{_DIGITS}g}"
    return str(value)


@dataclass(frozen=True)
class Figure:
    """One figure of the report.

    Attributes
    ----------
    name : str
        Of its files.
    title, caption : str
    table : Table
        The numbers that are drawn.
    draw : callable
        Makes the matplotlib figure, at the size that it has on paper.
    traces, layout : list of dict, dict
        The figure as plotly takes it, without what depends on the page being light or dark.
    height : int
        Pixels on the page.
    dimensions : sequence, one entry a trace, of arrays by latent dimension
        Where the reader may choose which of them are drawn.
    scale : str
        Colours of its colour axis: rmsd or contacts.
    place : str
        wide: alone on a line of the page; else the name of the row that it shares with its neighbours.
    """

    name: str
    title: str
    caption: str
    table: Table
    draw: Callable[[], Drawing]
    traces: Sequence[Mapping[str, Any]] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    height: int = 420
    dimensions: Sequence[Sequence[np.ndarray]] = ()
    scale: Literal["rmsd", "contacts"] = "rmsd"
    place: str = "wide"

    @property
    def is_3d(self) -> bool:
        return any(str(trace.get("type", "")).endswith("3d") for trace in self.traces)


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn, and why."""

    name: str
    title: str
    reason: str
    place: str = "wide"


def draw_files(figure: Figure, paths: Iterable[Path]) -> None:
    """Draw once and save in each format, the same bytes for the same numbers.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    with print_style():
        drawing = figure.draw()
        # Arranged once for all formats: it takes as long as drawing.
        drawing.draw_without_rendering()
        drawing.set_layout_engine("none")
        for path in paths:
            drawing.savefig(path, format=path.suffix[1:], metadata=_METADATA[path.suffix])


#: No date, no version: the same figure is the same file.
_METADATA: dict[str, dict[str, Any]] = {".svg": {"Date": None, "Creator": "entk-app"}, ".png": {"Software": "entk-app"}}
