"""Write a report: figures, their numbers, structures, and the page that shows them."""

from __future__ import annotations

import base64
import io
import logging
import os
import shutil
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from entk_app.errors import RunFolderError
from entk_app.export import select_protein
from entk_app.layout import RunLayout
from entk_app.report.data import ReportData, read_report_data
from entk_app.report.figure import Figure, Missing, Table, draw_files
from entk_app.report.figures import SECTIONS, Builder
from entk_app.report.page import Section, Shown, render_page
from entk_app.report.tables import (
    build_table_1,
    build_table_2,
    list_facts,
    measure,
    tell_decisions,
)

logger = logging.getLogger(__name__)

#: Names of the folders that reports are made in, and seconds after which one has been left behind.
_WORK = ".report-"
_LEFT_AFTER_S = 3600.0


@dataclass(frozen=True)
class ReportFiles:
    """What was written.

    Attributes
    ----------
    page : Path
    figures : tuple of str
        Names of the figures that have data.
    missing : tuple of str
        Sentences about what was left out.
    """

    page: Path
    figures: tuple[str, ...]
    missing: tuple[str, ...]


def write_report(layout: RunLayout, now: float | None = None) -> ReportFiles:
    """Read the run folder as it stands and write ``RUN/report``, over an earlier one.

    Parameters
    ----------
    layout : RunLayout
    now : float or None
        Unix time of the look; None: this moment.

    Raises
    ------
    RunFolderError
        There is no campaign in the folder, or the report cannot be written.
    SettingsError
        Its settings cannot be read.
    """
    data = read_report_data(layout, now)
    try:
        # Whoever has the page open reloads to a whole one: files are made elsewhere and moved into place.
        _clear_left_behind(layout.root)
        work = Path(tempfile.mkdtemp(prefix=_WORK, dir=layout.root))
        try:
            files = _write(data, work)
            _publish(work, layout.report)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise RunFolderError(f"the report cannot be written to {layout.report}: {error}") from None
    return replace(files, page=layout.report / files.page.name)


def _clear_left_behind(root: Path) -> None:
    """What a report that was killed had made."""
    for folder in root.glob(f"{_WORK}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFT_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)


def _write(data: ReportData, folder: Path) -> ReportFiles:
    figures = folder / "figures"
    figures.mkdir()
    sections, names, missing = [], [], []
    for key, title, builders in SECTIONS:
        shown: list[Shown | Missing] = []
        for builder in builders:
            for found in _build(builder, data):
                if isinstance(found, Missing):
                    missing.append(f"{found.title}: {found.reason}")
                    shown.append(found)
                else:
                    shown.append(_write_figure(found, figures))
                    names.append(found.name)
        sections.append(Section(key, title, tuple(shown)))
    _write_structures(data, figures)
    measures = measure(data)
    tables = (build_table_1(data, measures), build_table_2(data, measures))
    for table in tables:
        _write_text(figures / f"{table.name}.csv", table.numbers.to_csv())
    told = tell_decisions(data)
    _write_text(figures / "decisions.csv", Table({
        "decision": [t.index for t in told], "hours": [t.hours for t in told], "iteration": [t.iteration for t in told],
        "what": [t.headline for t in told], "known": [t.numbers for t in told],
        "actions": [" ".join(t.actions) for t in told],
    }).to_csv())  # fmt: skip
    page = folder / "index.html"
    _write_text(page, render_page(data, list_facts(data, measures), tables, tuple(sections), told))
    return ReportFiles(page, tuple(names), (*data.notes, *missing))


def _build(builder: Builder, data: ReportData) -> list[Figure | Missing]:
    try:
        return list(builder(data))
    except Exception as error:
        # A figure that fails on a campaign nobody thought of must not cost the others.
        logger.exception("a figure was left out")
        name = getattr(builder, "__name__", "figure").removeprefix("build_").replace("_", " ")
        return [Missing(name.replace(" ", "-"), name.capitalize(), f"It failed ({type(error).__name__}: {error}).")]


def _write_figure(figure: Figure, folder: Path) -> Shown:
    _write_text(folder / f"{figure.name}.csv", figure.table.to_csv())
    with warnings.catch_warnings():
        # matplotlib on labels that would not fit, where the figure has too little in it.
        warnings.simplefilter("ignore")
        draw_files(figure, [folder / f"{figure.name}.{kind}" for kind in ("svg", "png")])
    stand_in = None
    if figure.is_3d or not figure.traces:
        stand_in = base64.b64encode(shrink((folder / f"{figure.name}.png").read_bytes())).decode()
    return Shown(figure, stand_in)


def shrink(png: bytes) -> bytes:
    """A picture for the screen of one for print."""
    from PIL import Image

    picture: Image.Image = Image.open(io.BytesIO(png))
    if picture.width > 1100:
        picture = picture.resize((1100, round(picture.height * 1100 / picture.width)))
    small = io.BytesIO()
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(small, "PNG", optimize=True)
    return small.getvalue()


def _write_structures(data: ReportData, folder: Path) -> None:
    if not data.representatives:
        return
    import MDAnalysis as mda

    with warnings.catch_warnings():
        # What a PDB file of a simulated protein does not hold: occupancies, a unit cell ...
        warnings.simplefilter("ignore")
        universe = mda.Universe(str(data.layout.topology))
        if data.system.is_periodic:
            # Superposed frames do not lie in a box.
            universe.dimensions = None
        for item in data.representatives:
            universe.atoms.positions = item.positions
            select_protein(universe, data.system).write(str(folder / f"structure-{item.name}.pdb"))
    shutil.copyfile(data.layout.native, folder / "native.pdb")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _publish(work: Path, target: Path) -> None:
    """Each file at its place, the page last; figures of an earlier report that are no more go."""
    new = {path.name for path in (work / "figures").iterdir()}
    (target / "figures").mkdir(parents=True, exist_ok=True)
    for name in new:
        os.replace(work / "figures" / name, target / "figures" / name)
    os.replace(work / "index.html", target / "index.html")
    for old in (target / "figures").iterdir():
        if old.name not in new:
            old.unlink()
