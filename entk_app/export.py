"""Frames of a campaign as files for other programs: PDB and XTC for viewers, Parquet and CSV for tables."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entk_app import __version__, geometry
from entk_app.classes import FoldClass, find_class_limits
from entk_app.errors import ExportError
from entk_app.frame_table import FrameTable, Selection, read_outliers
from entk_app.layout import RunLayout
from entk_app.records import FrameRef, ModelRef, SystemRecord
from entk_app.run_reader import RunReader, RunState
from entk_app.trajectory import read_stored

if TYPE_CHECKING:
    import pyarrow

#: What the name of a file may end in: structures, and tables.
STRUCTURES = (".pdb", ".xtc")
TABLES = (".parquet", ".csv")


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes
    ----------
    paths : tuple of Path
        The file that was asked for, then those beside it.
    n_frames : int
    rmsd_range : (float, float) or None
        Lowest and highest of the frames that were written, ångström.
    """

    paths: tuple[Path, ...]
    n_frames: int
    rmsd_range: tuple[float, float] | None


def open_run(layout: RunLayout) -> RunState:
    """A look at the run whose frames are to be exported.

    Raises
    ------
    RunFolderError
        There is no campaign in the folder.
    ExportError
        It has no whole segment.
    """
    run = RunReader(layout).read(time.time())
    if run.system is None or not run.segments:
        raise ExportError(f"{layout.root} has no whole segment yet: there is no frame to export")
    return run


def export_frames(
    layout: RunLayout,
    run: RunState,
    selection: Selection,
    path: Path,
    *,
    latent_dim: int | None = None,
    superpose: bool = True,
    solvent: bool = False,
    force: bool = False,
) -> ExportResult:
    """Write the chosen frames: as structures or as a table, as the name of the file ends.

    Parameters
    ----------
    layout : RunLayout
    run : RunState
        From :func:`open_run`.
    selection : Selection
    path : Path
        Ends in .pdb, .xtc, .parquet or .csv. Beside structures a CSV file says which frame is which, beside an XTC
        file a PDB file holds the topology.
    latent_dim : int or None
        Latent coordinates are of the newest model of this size; None: of the last analysis' best.
    superpose : bool
        Structures: on the CA atoms of the native structure; where there is none, of the first frame.
    solvent : bool
        Structures of a system in explicit solvent: its water and ions too, not the protein alone.
    force : bool
        Overwrite what is there.

    Raises
    ------
    ExportError
        No frame is chosen, a file is there already, or something cannot be read or written.
    """
    kind = path.suffix.lower()
    if kind not in (*STRUCTURES, *TABLES):
        raise ExportError(f"{path}: its name must end in {', '.join(STRUCTURES)} (structures) or {', '.join(TABLES)}")
    table = FrameTable(layout, run, _check_selection(layout, run, selection), selection, find_model(run, latent_dim))
    paths = _name_files(path)
    _check_files(paths, force)
    with _published(paths) as temporary:
        counted = _Counted(table.read())
        if kind in STRUCTURES:
            _write_structures(table, counted, temporary, superpose, solvent)
        else:
            _write_table(table, counted, temporary[0])
        if not counted.n_frames:
            raise ExportError(_explain_nothing(run))
    return ExportResult(paths, counted.n_frames, counted.rmsd_range)


def build_selection(
    layout: RunLayout,
    run: RunState,
    *,
    rmsd: str | None = None,
    rmsd_below: float | None = None,
    fold_class: FoldClass | None = None,
    outliers: str | None = None,
    simulations: Sequence[int] | None = None,
    segments: Sequence[int] | None = None,
    every: int = 1,
    best: int | None = None,
) -> tuple[Selection, str]:
    """A selection as the command line asks for it, and in words.

    Parameters
    ----------
    rmsd : str or None
        A:B, more than A and at most B Å; one of them may be missing.
    outliers : str or None
        last, any, or the number of an iteration.

    Raises
    ------
    ExportError
        A value that cannot be, or an analysis that is not there.
    """
    for option, value in (("--every", every), ("--best", best)):
        if value is not None and value < 1:
            raise ExportError(f"{option} {value}: give a number of 1 or more")
    above, up_to, words = None, rmsd_below, []
    if rmsd is not None:
        above, up_to = parse_range(rmsd)
    elif fold_class is not None:
        limits = find_class_limits(run.settings)
        above, up_to = limits.find_range(fold_class)
        words.append(f"{fold_class}, limits by {limits.source}")
    if above is not None or up_to is not None:
        words.append(
            "RMSD" + ("" if above is None else f" > {above:g}") + ("" if up_to is None else f" ≤ {up_to:g}") + " Å"
        )
    asked = None if outliers is None else frozenset(_find_outliers(layout, run, outliers))
    words += [] if outliers is None else [f"outliers of {'any' if outliers == 'any' else outliers} analysis"]
    words += [f"{what} {', '.join(map(str, sorted(set(numbers))))}" for what, numbers in (
        ("simulation", simulations or ()), ("segment", segments or ())
    ) if numbers]  # fmt: skip
    words += [f"every {every}"] if every > 1 else []
    words += [f"best {best}"] if best is not None else []
    selection = Selection(
        above_angstrom=above,
        up_to_angstrom=up_to,
        outliers=asked,
        simulations=None if simulations is None else frozenset(simulations),
        segments=None if segments is None else frozenset(segments),
        every=every,
        best=best,
    )
    return selection, "; ".join(words) or "all"


def parse_range(text: str) -> tuple[float | None, float | None]:
    """``A:B``, ``:B`` or ``A:``.

    Raises
    ------
    ExportError
    """
    low, colon, high = text.partition(":")
    try:
        above, up_to = (float(part) if part.strip() else None for part in (low, high))
    except ValueError:
        colon = ""
        above = up_to = None
    if not colon or (above is None and up_to is None) or not (above is None or up_to is None or above < up_to):
        raise ExportError(f"--rmsd {text!r}: write it as A:B in Å with A below B, such as 2:4, :2 or 8:")
    return above, up_to


def _find_outliers(layout: RunLayout, run: RunState, which: str) -> Iterable[FrameRef]:
    if run.analysis is None:
        raise ExportError(f"--outliers: {layout.root} has no analysis yet")
    if which == "last":
        return (outlier.frame for outlier in run.analysis.outliers)
    if which == "any":
        return read_outliers(layout, run.analysed)
    if not which.isdecimal() or int(which) not in run.analysed:
        known = f"{min(run.analysed)} to {max(run.analysed)}"
        raise ExportError(
            f"--outliers {which}: give an iteration that was analysed ({known}), any, or nothing: the last"
        )
    return read_outliers(layout, (int(which),))


def find_model(run: RunState, latent_dim: int | None) -> ModelRef | None:
    """Whose latent coordinates are given: the newest model of a size, else the last analysis' best, if there was one.

    Raises
    ------
    ExportError
        There is no model of that size.
    """
    if latent_dim is None:
        return None if run.analysis is None else run.analysis.best_model
    record = run.models.get(latent_dim)
    if record is None:
        have = ", ".join(map(str, run.models)) or "none yet"
        raise ExportError(f"--latent {latent_dim}: there is no model of that latent size; there are: {have}")
    return ModelRef(iteration=record.iteration, latent_dim=record.latent_dim)


def _check_selection(layout: RunLayout, run: RunState, selection: Selection) -> SystemRecord:
    """The system's record, where the selection can be of its frames."""
    if run.system is None:
        raise ExportError(f"{layout.root} has no system yet")
    if selection.needs_rmsd and not run.system.has_native:
        raise ExportError(
            f"{layout.root} has no native structure, so that its frames have no RMSD to be chosen by: "
            "choose by --outliers, --simulation, --segment or --every"
        )
    for option, asked, known in (
        ("--simulation", selection.simulations, {segment.simulation for segment in run.segments}),
        ("--segment", selection.segments, {segment.segment for segment in run.segments}),
    ):
        missing = sorted((asked or frozenset()) - known)
        if missing:
            raise ExportError(
                f"{option} {missing[0]}: there are no frames of it in {layout.root} "
                f"(there are of {min(known)} to {max(known)})"
            )
    return run.system


def _explain_nothing(run: RunState) -> str:
    lows = [segment.min_rmsd_angstrom for segment in run.segments if segment.min_rmsd_angstrom is not None]
    lowest = f"; the lowest RMSD of all is {min(lows):.2f} Å" if lows else ""
    return f"no frame is as asked for{lowest}: nothing was written"


# Files.


def _name_files(path: Path) -> tuple[Path, ...]:
    """The file that is asked for and those beside it."""
    if path.suffix.lower() in TABLES:
        return (path,)
    beside = (path.with_suffix(".csv"),)
    return (path, *beside) if path.suffix.lower() == ".pdb" else (path, *beside, path.with_suffix(".topology.pdb"))


def _check_files(paths: Iterable[Path], force: bool) -> None:
    for path in paths:
        if not path.parent.is_dir():
            raise ExportError(f"{path}: there is no folder {path.parent}")
        if path.is_dir() or (path.exists() and not force):
            raise ExportError(f"{path} is there already: choose another name, or overwrite it with --force")


@contextmanager
def _published(paths: tuple[Path, ...]) -> Iterator[tuple[Path, ...]]:
    """Names to write to; what is written goes to its place when all of it is whole, and away otherwise."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".entk-app-export-", dir=paths[0].parent))
    except OSError as error:
        raise ExportError(f"{paths[0].parent} cannot be written: {error.strerror}") from None
    try:
        temporary = tuple(folder / path.name for path in paths)
        yield temporary
        for source, target in zip(temporary, paths, strict=True):
            os.replace(source, target)
    except OSError as error:
        raise ExportError(f"{paths[0]} cannot be written: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Counted:
    """Pieces of a table on their way, counted."""

    def __init__(self, pieces: Iterable[pyarrow.Table]) -> None:
        self._pieces = pieces
        self.n_frames = 0
        self.rmsd_range: tuple[float, float] | None = None

    def __iter__(self) -> Iterator[pyarrow.Table]:
        for piece in self._pieces:
            self.n_frames += piece.num_rows
            if "rmsd_angstrom" in piece.column_names:
                rmsd = piece["rmsd_angstrom"].to_numpy()
                low, high = self.rmsd_range or (np.inf, -np.inf)
                self.rmsd_range = (min(low, float(rmsd.min())), max(high, float(rmsd.max())))
            yield piece


def _write_table(table: FrameTable, pieces: Iterable[pyarrow.Table], path: Path) -> None:
    from pyarrow import parquet

    if path.suffix.lower() == ".csv":
        with _csv_writer(path, table.schema) as writer:
            for piece in pieces:
                writer.write_table(piece)
        return
    described = table.schema.with_metadata(
        {"entk_app": __version__, "run": str(table.layout.root), "system": table.system.model_dump_json()}
    )
    with parquet.ParquetWriter(path, described) as writer:
        for piece in pieces:
            writer.write_table(piece.cast(described))


@contextmanager
def _csv_writer(path: Path, schema: pyarrow.Schema) -> Iterator[Any]:
    from pyarrow import csv

    # Numbers and plain names only: nothing needs quotes, which pyarrow's own header would have.
    options = csv.WriteOptions(include_header=False, quoting_style="none")
    with path.open("wb") as stream:
        stream.write((",".join(schema.names) + "\n").encode())
        with csv.CSVWriter(stream, schema, write_options=options) as writer:
            yield writer


def _write_structures(
    table: FrameTable, pieces: Iterable[pyarrow.Table], paths: tuple[Path, ...], superpose: bool, solvent: bool
) -> None:
    """A multi-model PDB file, or XTC and topology; and which frame is which."""
    import MDAnalysis as mda
    import pyarrow as pa
    from MDAnalysis.lib.mdamath import triclinic_box

    layout, ca = table.layout, np.asarray(table.system.ca_indices)
    fixed = _read_native(table) if superpose else None
    n_before = 0
    model = pa.field("model", pa.int32(), metadata={"meaning": "MODEL of the PDB file, frame of the XTC file, from 1"})
    with warnings.catch_warnings():
        # What a PDB file of a simulated protein does not hold: occupancies, a unit cell ...
        warnings.simplefilter("ignore")
        universe = mda.Universe(str(layout.topology))
        written = universe.atoms if solvent else select_protein(universe, table.system)
        with (
            mda.Writer(str(paths[0]), n_atoms=len(written), multiframe=True) as writer,
            _csv_writer(paths[1], table.schema.insert(0, model)) as which,
            _Positions(layout, table.system) as positions,
        ):
            for piece in pieces:
                numbers = pa.array(range(n_before + 1, n_before + 1 + piece.num_rows), pa.int32())
                which.write_table(piece.add_column(0, model, numbers))
                n_before += piece.num_rows
                columns = (piece[name].to_pylist() for name in ("simulation", "segment", "frame", "time_ps"))
                for simulation, segment, frame, time_ps in zip(*columns, strict=True):
                    placed, box = positions.read(simulation, segment, frame)
                    if superpose:
                        fixed = placed[ca] if fixed is None else fixed
                        placed = superpose_on(placed, ca, fixed)
                    universe.atoms.positions = placed
                    universe.trajectory.ts.time = time_ps
                    if table.system.is_periodic:
                        # A frame that was turned does not lie in its box any more.
                        universe.dimensions = None if superpose or box is None else triclinic_box(*box)
                    writer.write(written)
        if len(paths) > 2 and len(written) == len(universe.atoms):
            shutil.copyfile(layout.topology, paths[2])
        elif len(paths) > 2:
            written.write(str(paths[2]))


def select_protein(universe: Any, system: SystemRecord) -> Any:
    """The atoms of an MDAnalysis universe that are the protein's: all of them without explicit solvent."""
    if not system.chains:
        return universe.atoms
    return universe.atoms[np.concatenate([np.arange(first, end) for first, end in system.chains])]


def _read_native(table: FrameTable) -> NDArray[np.float64] | None:
    """CA positions of the native structure, shape (n_residues, 3), ångström."""
    import MDAnalysis as mda

    if not table.system.has_native:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trace = mda.Universe(str(table.layout.native)).select_atoms("name CA").positions.astype(np.float64)
        except (OSError, ValueError) as error:
            raise ExportError(f"{table.layout.native} cannot be read: {error}") from None
    if len(trace) != table.system.n_residues:
        raise ExportError(
            f"{table.layout.native} holds {len(trace)} CA atoms, the system has {table.system.n_residues} residues"
        )
    return trace


def superpose_on(
    positions: NDArray[np.floating], ca: NDArray[np.integer], fixed: NDArray[np.floating]
) -> NDArray[np.float64]:
    """All atoms moved as one, so that their CA atoms lie on others with the least RMSD.

    Parameters
    ----------
    positions : array, shape (n_atoms, 3), ångström
    ca : array of int, shape (n_residues,)
        Which of them are the CA atoms.
    fixed : array, shape (n_residues, 3), ångström
    """
    from MDAnalysis.analysis.align import rotation_matrix

    mobile, centre = positions[ca], fixed.mean(axis=0)
    rotation, _ = rotation_matrix(mobile - mobile.mean(axis=0), fixed - centre)
    moved: NDArray[np.float64] = (positions - mobile.mean(axis=0)) @ rotation.T + centre
    return moved


def read_positions(layout: RunLayout, system: SystemRecord, ref: FrameRef) -> NDArray[np.float64]:
    """Positions of all atoms of a frame as they were simulated, shape (n_atoms, 3), ångström.

    In a periodic box the chains of the protein are put side by side.

    Raises
    ------
    ExportError
        The trajectory cannot be read.
    """
    with _Positions(layout, system) as positions:
        return positions.read(ref.simulation, ref.segment, ref.frame)[0]


class _Positions:
    """Frames of trajectories; the last one that was asked for stays open."""

    def __init__(self, layout: RunLayout, system: SystemRecord) -> None:
        self._layout = layout
        self._system = system
        self._path: Path | None = None
        self._file: Any = None

    def __enter__(self) -> _Positions:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, simulation: int, segment: int, frame: int) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Positions of all atoms, shape (n_atoms, 3), and the box of a periodic system, shape (3, 3); ångström."""
        from MDAnalysis.lib.formats.libdcd import DCDFile

        path = self._layout.segment(simulation, segment).trajectory
        try:
            if path != self._path:
                self.__exit__()
                self._path, self._file = path, DCDFile(str(path))
            stored = read_stored(self._file, frame, self._system.is_periodic)
        except (OSError, EOFError) as error:
            raise ExportError(f"frame {frame} of {path} cannot be read: {error}") from None
        if stored.box is None:
            return stored.positions, None
        whole = geometry.join_chains(
            stored.positions, stored.box, np.asarray(self._system.ca_indices), self._system.chains
        )
        return whole, stored.box
