"""The figures of the report, by section of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from entk_app.report.data import ReportData
from entk_app.report.figure import Figure, Missing
from entk_app.report.figures.contacts import build_contact_maps
from entk_app.report.figures.cost import build_hours, build_timeline
from entk_app.report.figures.folding import build_histogram, build_progress, build_rmsd
from entk_app.report.figures.latent import build_latent
from entk_app.report.figures.learning import build_choice, build_losses, build_outliers
from entk_app.report.figures.lineage import build_lineage
from entk_app.report.figures.structures import build_structures

Builder = Callable[[ReportData], Iterable[Figure | Missing]]

#: Section of the page, what it is about, what makes its figures: a new figure is a function here.
SECTIONS: tuple[tuple[str, str, tuple[Builder, ...]], ...] = (
    ("folding", "Folding", (build_progress, build_rmsd, build_histogram)),
    ("latent", "Latent space", (build_latent,)),
    ("structures", "Structures", (build_structures, build_contact_maps)),
    ("lineage", "Lineage", (build_lineage,)),
    ("learning", "Learning", (build_losses, build_choice, build_outliers)),
    ("cost", "Cost", (build_hours, build_timeline)),
)
