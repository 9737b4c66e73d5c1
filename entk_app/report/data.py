"""A run folder read into arrays, once: what every table and figure of the report is made from.

It reads what is whole, of a campaign that runs, has died or has ended. A piece that is missing or damaged is left out
with a sentence in ``notes``.
"""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from entk_app import geometry
from entk_app.accounting import CampaignAccount, Usage, account
from entk_app.classes import FOLD_CLASSES, ClassLimits, FoldClass, find_class_limits
from entk_app.errors import DataError, EntkAppError, ExportError, RecordError, RunFolderError
from entk_app.export import read_positions, superpose_on
from entk_app.frames import look_up_embeddings, read_columns_and_maps, read_packed_maps
from entk_app.integrity import check_file
from entk_app.layout import RunLayout
from entk_app.records import (
    AnalysisRecord,
    FileDigest,
    FrameRef,
    ModelRecord,
    ModelRef,
    RunInfo,
    SegmentKey,
    SegmentRecord,
    SystemRecord,
    read_record,
)
from entk_app.run_reader import RunReader, RunState
from entk_app.status import StatusReport, describe_run
from entk_app.usage import read_usage

FloatArray = NDArray[np.floating]
Value = TypeVar("Value")

#: What HDF5 raises for a file that is damaged, or that a task is writing to.
_UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, DataError)

#: A damaged run folder may have a thousand broken pieces: so many are named.
_MAX_NAMED = 5


@dataclass(frozen=True)
class FrameColumns:
    """All frames, in the order of simulations, segments and frames.

    Attributes
    ----------
    simulation, segment, frame, iteration : arrays of int, shape (n_frames,)
        The identity of each row, and the iteration that made it.
    time_ps : array, shape (n_frames,)
        Since the start of the simulation.
    unix : array, shape (n_frames,)
        When it was made: between begin and end of its segment, which are known, evenly.
    aggregate_ps : array, shape (n_frames,)
        What all simulations together had simulated by then.
    rmsd_angstrom, native_contacts : array, shape (n_frames,), or None
        None where there is no native structure.
    radius_of_gyration_angstrom : array, shape (n_frames,)
    """

    simulation: NDArray[np.int32]
    segment: NDArray[np.int32]
    frame: NDArray[np.int32]
    iteration: NDArray[np.int32]
    time_ps: NDArray[np.float64]
    unix: NDArray[np.float64]
    aggregate_ps: NDArray[np.float64]
    rmsd_angstrom: NDArray[np.float64] | None
    native_contacts: NDArray[np.float64] | None
    radius_of_gyration_angstrom: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frame)

    def ref(self, row: int) -> FrameRef:
        return FrameRef(
            simulation=int(self.simulation[row]), segment=int(self.segment[row]), frame=int(self.frame[row])
        )

    @cached_property
    def rows_of(self) -> Mapping[int, slice]:
        """The rows of each simulation that has frames."""
        numbers, firsts = np.unique(self.simulation, return_index=True)
        ends = [*firsts[1:], len(self)]
        return {int(n): slice(int(a), int(b)) for n, a, b in zip(numbers, firsts, ends, strict=True)}

    @cached_property
    def _first_rows(self) -> Mapping[tuple[int, int], int]:
        place = np.flatnonzero(self.frame == 0)
        return {(int(self.simulation[i]), int(self.segment[i])): int(i) for i in place}

    def find_row(self, ref: FrameRef) -> int | None:
        """The row of a frame; None where its segment is not among them."""
        first = self._first_rows.get((ref.simulation, ref.segment))
        row = None if first is None else first + ref.frame
        return row if row is not None and row < len(self) and self.ref(row) == ref else None


@dataclass(frozen=True)
class SimulationLife:
    """One simulation: where it came from, how long it lived, how it went.

    Attributes
    ----------
    origin : FrameRef or None
        The outlier that it started from; None: the initial structure.
    end : str or None
        purge or end, with the reason; None while it goes on.
    unix_begin, unix_end : float
        Of its segments.
    min_rmsd_angstrom : float or None
    fold_class : str or None
        The class that its lowest RMSD reached.
    """

    simulation: int
    origin: FrameRef | None
    reason: str
    end: str | None
    end_reason: str
    unix_begin: float
    unix_end: float
    n_frames: int
    time_ps: float
    min_rmsd_angstrom: float | None
    fold_class: FoldClass | None


@dataclass(frozen=True)
class Training:
    """A model and its losses by epoch: ``history`` has the columns of its history.csv."""

    record: ModelRecord
    history: Mapping[str, FloatArray]


@dataclass(frozen=True)
class LatentSpace:
    """Latent coordinates of one model.

    Attributes
    ----------
    model : ModelRef
    rows : array of int, shape (n_encoded,)
        Rows of the frames that it has encoded.
    coordinates : array, shape (n_encoded, latent_dim)
    is_outlier : array of bool, shape (n_encoded,)
        An outlier, by whichever model, in the analysis of ``iteration``.
    """

    model: ModelRef
    iteration: int
    rows: NDArray[np.intp]
    coordinates: NDArray[np.float32]
    is_outlier: NDArray[np.bool_]


@dataclass(frozen=True)
class Representative:
    """A frame that stands for a class, superposed on the native structure.

    Attributes
    ----------
    name : str
        lowest (RMSD), or a class.
    positions : array, shape (n_atoms, 3), ångström
    """

    name: str
    row: int
    ref: FrameRef
    rmsd_angstrom: float
    positions: FloatArray


@dataclass(frozen=True)
class Contacts:
    """Contact maps, shape (n_residues, n_residues): probabilities in ``mean``, 0 and 1 in the others."""

    cutoff_angstrom: float
    mean: FloatArray
    native: NDArray[np.uint8] | None
    best: NDArray[np.uint8] | None


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows, as it stood at ``run.now``.

    Attributes
    ----------
    ca : array of int, shape (n_residues,)
        Places of the CA atoms.
    native_ca : array, shape (n_residues, 3), ångström, or None
    usage, account : or None
        What the pilots were used for, where they left profiles.
    notes : tuple of str
        What was left out, and why.
    """

    layout: RunLayout
    run: RunState
    status: StatusReport
    system: SystemRecord
    info: RunInfo | None
    limits: ClassLimits
    frames: FrameColumns
    lives: tuple[SimulationLife, ...]
    trainings: tuple[Training, ...]
    analyses: tuple[AnalysisRecord, ...]
    latent: LatentSpace | None
    representatives: tuple[Representative, ...]
    contacts: Contacts | None
    ca: NDArray[np.intp]
    native_ca: FloatArray | None
    usage: Usage | None
    account: CampaignAccount | None
    notes: tuple[str, ...]

    @property
    def rmsd(self) -> FloatArray | None:
        return self.frames.rmsd_angstrom if len(self.frames) else None

    @cached_property
    def best_row(self) -> int | None:
        """The row with the lowest RMSD."""
        return None if self.rmsd is None else int(np.argmin(self.rmsd))

    @cached_property
    def first_folded_row(self) -> int | None:
        """The first frame by the clock that was folded."""
        if self.rmsd is None:
            return None
        folded = np.flatnonzero(self.rmsd <= self.limits.folded)
        return int(folded[np.argmin(self.frames.unix[folded])]) if len(folded) else None

    def to_working_hours(self, unix: FloatArray | float) -> FloatArray:
        """Hours since the campaign began, without the time between its pilots.

        Parameters
        ----------
        unix : float or array

        Returns
        -------
        array of the same shape
        """
        spans = [(p.unix_submitted, p.unix_end or self.run.now) for p in self.run.pilots]
        first = self.run.decisions[0].unix if self.run.decisions else self.run.now
        if not spans:
            return (np.asarray(unix, dtype=float) - first) / 3600.0
        known: list[float] = []
        worked: list[float] = []
        total = 0.0
        for begin, end in spans:
            begin = max(begin, known[-1]) if known else min(begin, first)
            known += [begin, max(begin, end)]
            worked += [total, total + max(0.0, end - begin)]
            total = worked[-1]
        return np.asarray(np.interp(unix, known, worked)) / 3600.0


def read_report_data(layout: RunLayout, now: float | None = None) -> ReportData:
    """Read a run folder.

    Parameters
    ----------
    layout : RunLayout
    now : float or None
        Unix time of the look; None: this moment.

    Raises
    ------
    RunFolderError
        There is no campaign in the folder.
    SettingsError
        Its settings cannot be read.
    """
    run = RunReader(layout).read(time.time() if now is None else now)
    notes = _Notes()
    for note in run.notes:
        notes.add("", note)
    system = run.system
    if system is None:
        notes.add("", "system/system.json cannot be read: structures and contact maps are left out.")
        system = SystemRecord(
            name=run.settings.system.name, model=run.settings.system.model, sequence="", n_atoms=0, n_residues=0,
            ca_indices=(), has_native=False, force_field="unknown",
        )  # fmt: skip
    limits = find_class_limits(run.settings)
    _note_missing_segments(layout, run, notes)
    frames, mean_map = _read_frames(layout, run, system, notes)
    analyses = tuple(_read_analyses(layout, run, notes))
    native = _read_native(layout, system, notes)
    ca = np.asarray(system.ca_indices, dtype=np.intp)
    representatives = tuple(_read_representatives(layout, frames, limits, native, system, notes))
    usage, result = _read_account(layout, run.now, notes)
    return ReportData(
        layout=layout,
        run=run,
        status=describe_run(run, layout),
        system=system,
        info=notes.attempt("run.json", partial(read_record, RunInfo, layout.run_info)),
        limits=limits,
        frames=frames,
        lives=tuple(_describe_lives(run, limits)),
        trainings=tuple(_read_trainings(layout, run, notes)),
        analyses=analyses,
        latent=_read_latent(layout, run, frames, analyses, notes),
        representatives=representatives,
        contacts=_build_contacts(layout, run, frames, mean_map, native, notes),
        ca=ca,
        native_ca=native,
        usage=usage,
        account=result,
        # The last to be looked at: by now all has been read.
        notes=notes.sentences(),
    )


class _Notes:
    """Sentences about what was left out; many of one kind become one."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[str]] = {}

    def add(self, kind: str, sentence: str) -> None:
        """``kind``: what there may be many of, in the plural; "" for a sentence of its own."""
        self._by_kind.setdefault(kind, []).append(sentence)

    def attempt(self, kind: str, read: Callable[[], Value]) -> Value | None:
        """What was read, or None and a sentence."""
        try:
            return read()
        except (RecordError, *_UNREADABLE) as error:
            self.add(kind, f"Left out: {error}")
            return None

    def sentences(self) -> tuple[str, ...]:
        found: list[str] = []
        for kind, sentences in self._by_kind.items():
            found += sentences if not kind else sentences[:_MAX_NAMED]
            if kind and len(sentences) > _MAX_NAMED:
                found.append(f"Left out likewise: {len(sentences) - _MAX_NAMED} more {kind}.")
        return tuple(found)


def _note_missing_segments(layout: RunLayout, run: RunState, notes: _Notes) -> None:
    """Segments whose folder is there and whose record cannot be read."""
    for number, simulation in run.simulations.items():
        known = {segment.segment for segment in simulation.segments}
        for segment in layout.segment_numbers(number):
            if segment not in known:
                path = layout.segment(number, segment).record
                notes.add("segments", f"Left out: {path.relative_to(layout.root)} is not a whole record.")


def _read_frames(
    layout: RunLayout, run: RunState, system: SystemRecord, notes: _Notes
) -> tuple[FrameColumns, NDArray[np.float64] | None]:
    """All frames; how often each pair is in contact, shape (n_pairs,)."""
    parts: dict[str, list[NDArray]] = {name: [] for name in ("time_ps", "radius_of_gyration_angstrom")}
    native: dict[str, list[NDArray]] = {"rmsd_angstrom": [], "native_contacts": []}
    identity: list[tuple[int, int, int, int]] = []
    unix, steps_ps, in_contact = [], [], None
    for number in sorted(run.simulations):
        for segment in run.simulations[number].segments:
            read = notes.attempt("segments", partial(_read_segment, layout, segment, system.n_residues))
            if read is None or not segment.n_frames:
                continue
            columns, counts = read
            n = segment.n_frames
            identity.append((number, segment.segment, segment.iteration, n))
            for name, column in parts.items():
                column.append(columns[name])
            for name, column in native.items():
                column.append(columns.get(name, np.full(n, np.nan)))
            share = (np.arange(n) + 1.0) / n
            unix.append(segment.unix_start + share * (segment.unix_end - segment.unix_start))
            steps_ps.append(np.full(n, segment.time_ps / n))
            in_contact = counts if in_contact is None else in_contact + counts
    lengths = [n for *_, n in identity]
    n_frames = sum(lengths)
    when = _join(unix)
    aggregate = np.empty(n_frames)
    order = np.argsort(when, kind="stable")
    aggregate[order] = np.cumsum(_join(steps_ps)[order])
    simulation, segment_number, iteration = (
        np.repeat(np.array([item[k] for item in identity], dtype=np.int32), lengths) for k in range(3)
    )
    scored = {
        name: None if not n_frames or np.isnan(values := _join(column)).any() else values
        for name, column in native.items()
    }
    frames = FrameColumns(
        simulation=simulation,
        segment=segment_number,
        frame=_join([np.arange(n, dtype=np.int32) for n in lengths], np.int32),
        iteration=iteration,
        time_ps=_join(parts["time_ps"]),
        unix=when,
        aggregate_ps=aggregate,
        rmsd_angstrom=scored["rmsd_angstrom"],
        native_contacts=scored["native_contacts"],
        radius_of_gyration_angstrom=_join(parts["radius_of_gyration_angstrom"]),
    )
    return frames, None if in_contact is None else in_contact / n_frames


def _read_segment(
    layout: RunLayout, segment: SegmentRecord, expected_residues: int
) -> tuple[dict[str, NDArray], NDArray[np.float64]]:
    """Its columns, and how many of its frames have each pair in contact.

    Raises
    ------
    DataError
        Its file is not the one that was published, has other frames than the record says, or is of another protein.
    """
    path = layout.segment(segment.simulation, segment.segment).frames
    # The reader of many records keeps digests as they stand in the file.
    digest: Any = (segment.files or {}).get(path.name)
    check_file(path, {} if digest is None else {path.name: FileDigest.model_validate(digest)})
    columns, packed, n_residues = read_columns_and_maps(path)
    if {len(values) for values in (*columns.values(), packed)} != {segment.n_frames}:
        raise DataError(f"{path} does not hold the {segment.n_frames} frames that its record says")
    if expected_residues not in (0, n_residues):
        raise DataError(f"{path} is of {n_residues} residues, the system has {expected_residues}")
    bits = np.unpackbits(packed, axis=1, count=geometry.count_pairs(n_residues))
    return columns, bits.sum(axis=0, dtype=np.float64)


def _join(parts: Iterable[NDArray], kind: type = np.float64) -> NDArray:
    collected = list(parts)
    return np.concatenate(collected).astype(kind, copy=False) if collected else np.empty(0, dtype=kind)


def _describe_lives(run: RunState, limits: ClassLimits) -> Iterator[SimulationLife]:
    ends = {a.simulation: a for d in run.decisions for a in d.actions if a.kind in ("purge", "end")}
    for number, simulation in sorted(run.simulations.items()):
        if not simulation.segments:
            continue
        lows = [s.min_rmsd_angstrom for s in simulation.segments if s.min_rmsd_angstrom is not None]
        lowest = min(lows, default=None)
        end = ends.get(number)
        yield SimulationLife(
            simulation=number,
            origin=simulation.origin,
            reason=run.starts[number].reason,
            end=None if end is None else end.kind,
            end_reason="" if end is None else end.reason,
            unix_begin=min(s.unix_start for s in simulation.segments),
            unix_end=max(s.unix_end for s in simulation.segments),
            n_frames=simulation.n_frames,
            time_ps=simulation.time_ps,
            min_rmsd_angstrom=lowest,
            fold_class=None if lowest is None else classify(lowest, limits),
        )


def classify(rmsd_angstrom: float, limits: ClassLimits) -> FoldClass:
    """The class of a frame with this RMSD."""
    return "folded" if rmsd_angstrom <= limits.folded else "partial" if rmsd_angstrom <= limits.partial else "unfolded"


def _read_trainings(layout: RunLayout, run: RunState, notes: _Notes) -> Iterator[Training]:
    for iteration, sizes in sorted(run.trained.items()):
        for latent_dim in sorted(sizes):
            paths = layout.model(iteration, latent_dim)
            record = notes.attempt("models", partial(read_record, ModelRecord, paths.record))
            if record is not None:
                history = notes.attempt("loss curves", partial(_read_history, paths.history))
                yield Training(record, history or {})


def _read_history(path: Path) -> dict[str, FloatArray]:
    """A model's history.csv by column."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    try:
        return {name: np.array([float(row[name]) for row in rows]) for name in (rows[0] if rows else ())}
    except (TypeError, ValueError):
        raise DataError(f"{path} is not a table of numbers") from None


def _read_analyses(layout: RunLayout, run: RunState, notes: _Notes) -> Iterator[AnalysisRecord]:
    for iteration in sorted(run.analysed):
        record = notes.attempt("analyses", partial(read_record, AnalysisRecord, layout.analysis(iteration)))
        if record is not None:
            yield record


def _read_latent(
    layout: RunLayout, run: RunState, frames: FrameColumns, analyses: tuple[AnalysisRecord, ...], notes: _Notes
) -> LatentSpace | None:
    """The coordinates by the last analysis' best model; where they cannot be read, by another of its models."""
    if not analyses or not len(frames):
        return None
    last = analyses[-1]
    keys = [
        SegmentKey(simulation=s.simulation, segment=s.segment, n_frames=s.n_frames)
        for s in run.segments
        if frames.find_row(FrameRef(simulation=s.simulation, segment=s.segment, frame=0)) is not None
    ]
    # The best first.
    for model in sorted((found.model for found in last.models), key=lambda model: model != last.best_model):
        path = layout.model(model.iteration, model.latent_dim).embeddings
        found = notes.attempt("latent coordinates", partial(look_up_embeddings, path, keys))
        if not found:
            notes.add("latent coordinates", f"Left out: {path.relative_to(layout.root)} holds no coordinates.")
            continue
        rows, parts = [], []
        for key, values in found.items():
            first = frames.find_row(FrameRef(simulation=key.simulation, segment=key.segment, frame=0))
            if first is not None:
                rows.append(first + np.arange(key.n_frames))
                parts.append(values)
        place = np.concatenate(rows)
        order = np.argsort(place)
        marked = np.zeros(len(frames), dtype=bool)
        marked[[row for o in last.outliers if (row := frames.find_row(o.frame)) is not None]] = True
        return LatentSpace(
            model, last.iteration, place[order], np.concatenate(parts)[order], marked[place[order]]
        )
    return None


def _read_native(layout: RunLayout, system: SystemRecord, notes: _Notes) -> FloatArray | None:
    if not system.has_native:
        return None

    def read() -> FloatArray:
        import MDAnalysis as mda

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: FloatArray = mda.Universe(str(layout.native)).select_atoms("name CA").positions.astype(np.float64)
        if len(found) != system.n_residues:
            raise DataError(f"{layout.native} holds {len(found)} CA atoms, the system {system.n_residues} residues")
        return found

    return notes.attempt("native structure", read)


def _read_representatives(
    layout: RunLayout,
    frames: FrameColumns,
    limits: ClassLimits,
    native: FloatArray | None,
    system: SystemRecord,
    notes: _Notes,
) -> Iterator[Representative]:
    """The frame with the lowest RMSD, and of each class that has frames the one with its median."""
    if native is None or frames.rmsd_angstrom is None:
        return
    for name, row in choose_representatives(frames.rmsd_angstrom, limits).items():
        ref = frames.ref(row)
        positions = notes.attempt("structures", partial(_read_superposed, layout, system, ref, native))
        if positions is not None:
            yield Representative(name, row, ref, float(frames.rmsd_angstrom[row]), positions)


def choose_representatives(rmsd: FloatArray, limits: ClassLimits) -> dict[str, int]:
    """Rows of the frames that are shown: the lowest RMSD, and the frame nearest to the median of each class.

    Parameters
    ----------
    rmsd : array, shape (n_frames,), ångström
    limits : ClassLimits
    """
    chosen = {"lowest": int(np.argmin(rmsd))}
    for fold_class in FOLD_CLASSES:
        low, high = limits.find_range(fold_class)
        above, up_to = -np.inf if low is None else low, np.inf if high is None else high
        members = np.flatnonzero((rmsd > above) & (rmsd <= up_to))
        if len(members):
            chosen[fold_class] = int(members[np.argmin(np.abs(rmsd[members] - np.median(rmsd[members])))])
    return chosen


def _read_superposed(layout: RunLayout, system: SystemRecord, ref: FrameRef, native: FloatArray) -> FloatArray:
    try:
        return superpose_on(read_positions(layout, system, ref), np.asarray(system.ca_indices), native)
    except (ExportError, IndexError) as error:
        raise DataError(str(error)) from None


def _build_contacts(
    layout: RunLayout,
    run: RunState,
    frames: FrameColumns,
    mean_pairs: NDArray[np.float64] | None,
    native: FloatArray | None,
    notes: _Notes,
) -> Contacts | None:
    if mean_pairs is None:
        return None
    cutoff = run.settings.simulate.contact_cutoff_angstrom
    n_residues = round((1 + np.sqrt(1 + 8 * len(mean_pairs))) / 2)
    mean = np.eye(n_residues)
    first, second = np.triu_indices(n_residues, k=1)
    mean[first, second] = mean[second, first] = mean_pairs
    best = None
    if frames.rmsd_angstrom is not None:
        ref = frames.ref(int(np.argmin(frames.rmsd_angstrom)))
        # Read before; it may have been set aside since.
        path = layout.segment(ref.simulation, ref.segment).frames
        read = notes.attempt("segments", partial(read_packed_maps, path))
        best = None if read is None else geometry.unpack_contacts(read[0][ref.frame : ref.frame + 1], n_residues)[0]
    reference = None
    if native is not None and len(native) == n_residues:
        packed_native = geometry.pack_contacts(geometry.compute_contacts(native, cutoff))
        reference = geometry.unpack_contacts(packed_native[None], n_residues)[0]
    return Contacts(cutoff, mean, reference, best)


def _read_account(layout: RunLayout, now: float, notes: _Notes) -> tuple[Usage | None, CampaignAccount | None]:
    try:
        usage = read_usage(layout, now)
        return usage, account(usage, now)
    except (EntkAppError, OSError, ValueError) as error:
        notes.add("accounts", f"What the pilots were used for is left out: {error}.")
        return None, None


def read_frame_columns(layout: RunLayout, run: RunState) -> tuple[FrameColumns, tuple[str, ...]]:
    """The frames alone, and sentences about what was left out.

    Parameters
    ----------
    layout : RunLayout
    run : RunState
        With its system.

    Raises
    ------
    RunFolderError
        The system has not been published.
    """
    if run.system is None:
        raise RunFolderError(f"{layout.root} has no system that can be read (system/system.json)")
    notes = _Notes()
    _note_missing_segments(layout, run, notes)
    frames, _ = _read_frames(layout, run, run.system, notes)
    return frames, notes.sentences()
