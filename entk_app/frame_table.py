"""The table of a campaign's frames, read segment by segment, and the choice among them.

Whole segments only, as they stand at the first look: a campaign that runs can be read too, and memory does not grow
with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import ExportError, RecordError
from entk_app.frames import look_up_embeddings, read_columns
from entk_app.layout import RunLayout
from entk_app.records import AnalysisRecord, FrameRef, ModelRef, SegmentKey, SegmentRecord, SystemRecord, read_record
from entk_app.run_reader import RunState

if TYPE_CHECKING:
    import pyarrow

#: Frames that are in memory at a time, beyond those of one segment.
_PIECE_FRAMES = 50_000
#: A file that a task is writing to just now is tried again.
_TRIES = 5
_TRY_AGAIN_S = 1.0

Value = TypeVar("Value")


@dataclass(frozen=True)
class Selection:
    """Which frames: those for which every condition that is given holds.

    Attributes
    ----------
    above_angstrom, up_to_angstrom : float or None
        RMSD to the native structure: more than the first, at most the second.
    outliers : frozenset of FrameRef, or None
        Only these.
    simulations, segments : frozenset of int, or None
        Only these numbers.
    every : int
        Of each simulation its frames 0, ``every``, 2 ``every`` ...
    best : int or None
        Of what is left, so many with the lowest RMSD, lowest first.
    """

    above_angstrom: float | None = None
    up_to_angstrom: float | None = None
    outliers: frozenset[FrameRef] | None = None
    simulations: frozenset[int] | None = None
    segments: frozenset[int] | None = None
    every: int = 1
    best: int | None = None

    @property
    def needs_rmsd(self) -> bool:
        return self.best is not None or self.above_angstrom is not None or self.up_to_angstrom is not None

    def may_hold(self, simulation: int, segment: int) -> bool:
        """Whether any frame of a segment can be among them."""
        return (self.simulations is None or simulation in self.simulations) and (
            self.segments is None or segment in self.segments
        )

    def choose(
        self, n_frames: int, first: int, rmsd: NDArray[np.floating] | None, is_outlier: NDArray[np.bool_]
    ) -> NDArray[np.intp]:
        """The frames of one segment that may hold some, ``best`` not considered.

        Parameters
        ----------
        n_frames : int
        first : int
            Place of the segment's first frame among all of its simulation.
        rmsd : array, shape (n_frames,), ångström, or None
            None where there is no native structure and nothing is chosen by it.
        is_outlier : array of bool, shape (n_frames,)
            Which are among ``outliers``.
        """
        chosen = (first + np.arange(n_frames)) % self.every == 0
        if rmsd is not None and self.above_angstrom is not None:
            chosen &= rmsd > self.above_angstrom
        if rmsd is not None and self.up_to_angstrom is not None:
            chosen &= rmsd <= self.up_to_angstrom
        if self.outliers is not None:
            chosen &= is_outlier
        return np.flatnonzero(chosen)


@dataclass(frozen=True)
class FrameTable:
    """The chosen frames of a run, with all that is known of each.

    Parameters
    ----------
    layout : RunLayout
    run : RunState
        The look that says which segments there are.
    system : SystemRecord
    selection : Selection
    model : ModelRef or None
        Whose latent coordinates are given; None: none are.
    """

    layout: RunLayout
    run: RunState
    system: SystemRecord
    selection: Selection
    model: ModelRef | None

    def read(self) -> Iterator[pyarrow.Table]:
        """Pieces in the order of simulations, segments and frames; with ``best`` a single one, lowest RMSD first.

        Raises
        ------
        ExportError
            A segment cannot be read, or holds another number of frames than its record says.
        """
        best = self.selection.best
        if best is None:
            yield from self._read_pieces()
            return
        kept = self.schema.empty_table()
        order = [(name, "ascending") for name in ("rmsd_angstrom", "simulation", "segment", "frame")]
        for piece in self._read_pieces():
            kept = _concat([kept, piece]).sort_by(order).slice(0, best).combine_chunks()
        if kept.num_rows:
            yield kept

    @cached_property
    def schema(self) -> pyarrow.Schema:
        """Columns, their types and what they are."""
        import pyarrow as pa

        columns = [
            ("simulation", pa.int32(), "number of the simulation"),
            ("segment", pa.int32(), "segment of the simulation"),
            ("frame", pa.int32(), "frame of the segment, from 0"),
            ("time_ps", pa.float64(), "ps since the start of the simulation"),
            ("rmsd_angstrom", pa.float64(), "CA atoms superposed on the native structure"),
            ("radius_of_gyration_angstrom", pa.float64(), "CA atoms, equal weights"),
            ("native_contacts", pa.float64(), "fraction of native CA contacts, |i - j| > 3"),
        ]
        if not self.system.has_native:
            columns = [column for column in columns if column[0] not in ("rmsd_angstrom", "native_contacts")]
        if self.system.score is not None:
            columns.append(("score", pa.float64(), f"{self.system.score.name}, to be {self.system.score.goal}d"))
        if self.model is not None:
            which = f"latent coordinate of the model of iteration {self.model.iteration}; null: not encoded"
            columns += [(f"latent_{number}", pa.float32(), which) for number in range(1, self.model.latent_dim + 1)]
        if self.run.analysis is not None:
            which = f"an outlier in the last analysis, of iteration {self.run.analysis.iteration}"
            columns += [("outlier", pa.bool_(), which), ("outlier_ever", pa.bool_(), "an outlier in any analysis")]
        return pa.schema([pa.field(name, kind, metadata={"meaning": meaning}) for name, kind, meaning in columns])

    def _read_pieces(self) -> Iterator[pyarrow.Table]:
        import pyarrow as pa

        batches: list[pa.RecordBatch] = []
        for segments in self._group():
            latents = self._read_latents(segments)
            for segment in segments:
                columns = self._read_segment(segment, latents.get(_key(segment)))
                batches.append(pa.record_batch([columns[name] for name in self.schema.names], schema=self.schema))
            if sum(batch.num_rows for batch in batches) >= _PIECE_FRAMES:
                yield pa.Table.from_batches(batches, self.schema).combine_chunks()
                batches = []
        if sum(batch.num_rows for batch in batches):
            yield pa.Table.from_batches(batches, self.schema).combine_chunks()

    def _group(self) -> Iterator[list[SegmentRecord]]:
        """The segments that may hold chosen frames, so many at a time that their frames fill a piece."""
        group: list[SegmentRecord] = []
        n_frames = 0
        for segment in self.run.segments:
            if not self.selection.may_hold(segment.simulation, segment.segment):
                continue
            group.append(segment)
            n_frames += segment.n_frames
            if n_frames >= _PIECE_FRAMES:
                yield group
                group, n_frames = [], 0
        yield group

    def _read_segment(self, segment: SegmentRecord, latent: NDArray[np.float32] | None) -> dict[str, NDArray]:
        """The chosen rows of one segment by column."""
        place, path = (segment.simulation, segment.segment), self.layout.segment(segment.simulation, segment.segment)
        columns = _try_again(lambda: read_columns(path.frames), path.frames)
        if any(len(values) != segment.n_frames for values in columns.values()):
            raise ExportError(f"{path.frames} does not hold the {segment.n_frames} frames that its record says")
        n_frames, asked = segment.n_frames, _mark(self._asked.get(place), segment.n_frames)
        rows = self.selection.choose(n_frames, self._firsts[place], columns.get("rmsd_angstrom"), asked)
        columns["simulation"], columns["segment"] = np.full(n_frames, place[0]), np.full(n_frames, place[1])
        columns["frame"] = np.arange(n_frames)
        if self.model is not None:
            # Not a number becomes null below.
            latent = np.full((n_frames, self.model.latent_dim), np.nan, dtype="f4") if latent is None else latent
            columns |= {f"latent_{number}": values for number, values in enumerate(latent.T, 1)}
        columns["outlier"], columns["outlier_ever"] = (
            _mark(frames.get(place), n_frames) for frames in (self._last_outliers, self._all_outliers)
        )
        return {name: _to_arrow(columns[name][rows]) for name in self.schema.names}

    def _read_latents(self, segments: Iterable[SegmentRecord]) -> dict[SegmentKey, NDArray[np.float32]]:
        if self.model is None:
            return {}
        path = self.layout.model(self.model.iteration, self.model.latent_dim).embeddings
        return _try_again(lambda: look_up_embeddings(path, map(_key, segments)), path)

    @cached_property
    def _firsts(self) -> dict[tuple[int, int], int]:
        """Place of each segment's first frame among all of its simulation."""
        firsts: dict[tuple[int, int], int] = {}
        for simulation in self.run.simulations.values():
            place = 0
            for segment in simulation.segments:
                firsts[segment.simulation, segment.segment] = place
                place += segment.n_frames
        return firsts

    @cached_property
    def _asked(self) -> Mapping[tuple[int, int], list[int]]:
        return _by_segment(self.selection.outliers or ())

    @cached_property
    def _last_outliers(self) -> Mapping[tuple[int, int], list[int]]:
        return _by_segment(o.frame for o in self.run.analysis.outliers) if self.run.analysis else {}

    @cached_property
    def _all_outliers(self) -> Mapping[tuple[int, int], list[int]]:
        return _by_segment(read_outliers(self.layout, self.run.analysed)) if self.run.analysis else {}


def read_outliers(layout: RunLayout, iterations: Iterable[int]) -> Iterator[FrameRef]:
    """The outliers of these analyses; a frame may come several times.

    Raises
    ------
    ExportError
        An analysis cannot be read.
    """
    for iteration in sorted(iterations):
        try:
            analysis = read_record(AnalysisRecord, layout.analysis(iteration))
        except RecordError as error:
            raise ExportError(str(error)) from None
        yield from (outlier.frame for outlier in analysis.outliers)


def _key(segment: SegmentRecord) -> SegmentKey:
    return SegmentKey(simulation=segment.simulation, segment=segment.segment, n_frames=segment.n_frames)


def _by_segment(frames: Iterable[FrameRef]) -> dict[tuple[int, int], list[int]]:
    places: dict[tuple[int, int], list[int]] = {}
    for ref in frames:
        places.setdefault((ref.simulation, ref.segment), []).append(ref.frame)
    return places


def _mark(frames: list[int] | None, n_frames: int) -> NDArray[np.bool_]:
    marked = np.zeros(n_frames, dtype=bool)
    marked[[frame for frame in frames or () if frame < n_frames]] = True
    return marked


def _to_arrow(values: NDArray) -> pyarrow.Array:
    import pyarrow as pa

    return pa.array(values, from_pandas=True)


def _concat(tables: list[pyarrow.Table]) -> pyarrow.Table:
    import pyarrow as pa

    return pa.concat_tables(tables)


def _try_again(read: Callable[[], Value], path: object) -> Value:
    """What a file holds, also when a task is writing to it at the first try."""
    for left in reversed(range(_TRIES)):
        try:
            return read()
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            if not left:
                raise ExportError(f"{path} cannot be read ({error}): it is damaged, or being written") from None
            time.sleep(_TRY_AGAIN_S)
    raise AssertionError
