"""What the tasks of a campaign published, as far as it is what they published; the rest is set aside.

Decisions say which simulations there are, the run folder what they, the models and the analyses came to.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from entk_app.errors import RecordError, RunFolderError
from entk_app.integrity import (
    DamagedError,
    check_file,
    find_damage,
    read_model,
    read_segment,
    read_set_aside,
    set_aside,
)
from entk_app.layout import ModelPaths, RunLayout, SegmentPaths
from entk_app.records import (
    Action,
    AnalysisRecord,
    FrameRef,
    ModelRecord,
    SegmentKey,
    SegmentRecord,
    SetAside,
    SystemRecord,
    read_record,
)
from entk_app.steering import MAX_FAILURES, SimulationHistory

#: Segments read at a time when a campaign is taken up again.
_READERS = 4

#: Where a process that is killed may leave a file that it had not given its name yet.
_UNNAMED = (
    ".*.tmp", "system/.*.tmp", "simulations/*/.*.tmp", "models/*/.*.tmp", "models/*/*/.*.tmp", "analysis/.*.tmp",
)  # fmt: skip


@dataclass
class Results:
    """The simulations, models and outliers of a campaign.

    Parameters
    ----------
    layout : RunLayout
    latent_dims : sequence of int
        Of the models that count.

    Attributes
    ----------
    simulations : dict
        By id.
    models : dict
        The newest good model of each latent size.
    newest : AnalysisRecord or None
        The newest analysis.
    n_decisions : int
        So many decisions were taken: what is set aside from now on was known to them.
    """

    layout: RunLayout
    latent_dims: Sequence[int]
    simulations: dict[int, SimulationHistory] = field(default_factory=dict)
    models: dict[int, ModelRecord] = field(default_factory=dict)
    newest: AnalysisRecord | None = None
    n_decisions: int = 0
    _outliers: set[FrameRef] = field(default_factory=set)

    @property
    def alive(self) -> list[SimulationHistory]:
        return [simulation for simulation in self.simulations.values() if simulation.alive]

    @property
    def n_outliers(self) -> int:
        """Frames that were an outlier in any analysis."""
        return sum(self.has(frame) for frame in self._outliers)

    def has(self, frame: FrameRef) -> bool:
        """Whether a frame is data."""
        return frame.simulation in self.simulations and self.simulations[frame.simulation].has(frame)

    def list_segments(self, before: int | None = None) -> tuple[SegmentKey, ...]:
        """All segments, or those that decisions before one with this index ordered."""
        return tuple(
            SegmentKey(simulation=s.simulation, segment=segment.segment, n_frames=segment.n_frames)
            for s in self.simulations.values()
            for segment in s.segments
            if before is None or segment.decision < before
        )

    def replay(self, actions: Iterable[Action]) -> None:
        """What a decision does to the simulations."""
        for action in actions:
            if action.kind in ("start", "restart"):
                self.simulations[action.simulation] = SimulationHistory(action.simulation, action.origin)
            elif action.kind in ("purge", "end"):
                self.simulations[action.simulation] = replace(self.simulations[action.simulation], alive=False)

    def read_all(self) -> None:
        """Reread what an earlier pilot left, once its decisions are replayed: each file against its checksum.

        Raises
        ------
        RunFolderError
            The system is not the one that the campaign was begun with.
        RecordError
            The notes of what was set aside cannot be read.
        """
        self._check_system()
        self._clear_unfinished()
        for note in read_set_aside(self.layout):
            self._forget(note)
        folders = [
            self.layout.segment(number, segment)
            for number in self.simulations
            for segment in self.layout.segment_numbers(number)
        ]
        with ThreadPoolExecutor(max_workers=_READERS) as readers:
            for paths, error in zip(folders, readers.map(find_damage, folders), strict=True):
                if error is not None:
                    self.set_aside(paths.folder, str(error))
        for number in self.simulations:
            self.take_segments(number)
        self.models = self._read_models()
        for path in sorted(self.layout.analyses.glob("iteration-????.json")):
            with contextlib.suppress(RecordError):
                self._take_analysis(path)

    def take_segments(self, number: int) -> SimulationHistory:
        """Take in the segments of a simulation that are new; one that is damaged is set aside."""
        simulation = self.simulations[number]
        known = {segment.segment for segment in simulation.segments} | simulation.lost
        for segment in self.layout.segment_numbers(number):
            if segment in known:
                continue
            paths = self.layout.segment(number, segment)
            try:
                record = read_segment(paths)
            except DamagedError as error:
                self.set_aside(paths.folder, str(error))
                continue
            simulation = self.simulations[number]
            self.simulations[number] = replace(simulation, segments=(*simulation.segments, record))
        return self.simulations[number]

    def take_model(self, iteration: int, latent_dim: int) -> bool:
        """Take in a model; False where it is not there, or damaged: the one before it goes on serving."""
        paths = self.layout.model(iteration, latent_dim)
        try:
            self.models[latent_dim] = read_model(paths)
        except DamagedError as error:
            if paths.folder.exists():
                self.set_aside(paths.folder, str(error))
            return False
        return True

    def take_analysis(self, iteration: int) -> AnalysisRecord | None:
        """Take in an analysis without outliers that are no data any more; None where it is not there, or damaged."""
        try:
            return self._take_analysis(self.layout.analysis(iteration))
        except RecordError:
            return None

    def set_aside(self, path: Path, reason: str) -> None:
        """Take something out of the data; a finished segment's frames are no frames of the campaign any more."""
        known: dict[str, int | None] = {"before_decision": self.n_decisions}
        place = self.layout.find_segment(path)
        if place is not None:
            record = self._find_record(path, *place)
            known |= {"simulation": place[0], "segment": place[1]}
            known |= {} if record is None else {"n_frames": record.n_frames, "decision": record.decision}
        self._forget(set_aside(self.layout, path, reason, **known))
        gone = [dim for dim, m in self.models.items() if path == self.layout.model(m.iteration, dim).folder]
        if gone:
            # The one before it serves again.
            self.models = self._read_models()

    def set_partial_aside(self, number: int, reason: str) -> None:
        """What the task of a simulation left half written."""
        folder = self.layout.segment(number, self.simulations[number].next_segment).in_work().folder
        if folder.exists():
            self.set_aside(folder, reason)

    def _take_analysis(self, path: Path) -> AnalysisRecord:
        try:
            analysis = read_record(AnalysisRecord, path)
        except RecordError as error:
            if path.exists():
                self.set_aside(path, str(error))
            raise
        self._outliers.update(outlier.frame for outlier in analysis.outliers)
        analysis = self._without_lost(analysis)
        if self.newest is None or self.newest.iteration <= analysis.iteration:
            self.newest = analysis
        return analysis

    def _without_lost(self, analysis: AnalysisRecord) -> AnalysisRecord:
        """An analysis without outliers that are no data any more."""
        present = tuple(outlier for outlier in analysis.outliers if self.has(outlier.frame))
        return analysis.model_copy(update={"outliers": present})

    def _check_system(self) -> None:
        record = read_record(SystemRecord, self.layout.system_record)
        for name in record.files:
            try:
                check_file(self.layout.system / name, record.files)
            except DamagedError as error:
                raise RunFolderError(
                    f"{error}: every trajectory needs it as it was; bring it back from a copy"
                ) from None

    def _clear_unfinished(self) -> None:
        """What a pilot that was killed left half written: frames are kept to be looked at, the rest is made again."""
        for folder in sorted(self.layout.simulations.glob("*/segment-*.partial")):
            self.set_aside(folder, "its task was killed before it was whole")
        for folder in self.layout.models.glob("iteration-*/*.partial"):
            shutil.rmtree(folder)
        for pattern in _UNNAMED:
            for path in self.layout.root.glob(pattern):
                path.unlink(missing_ok=True)

    def _find_record(self, folder: Path, simulation: int, segment: int) -> SegmentRecord | None:
        """The record of a segment that is to be set aside, where it is known or can be read."""
        if simulation in self.simulations:
            for record in self.simulations[simulation].segments:
                if record.segment == segment:
                    return record
        with contextlib.suppress(RecordError):
            return read_record(SegmentRecord, SegmentPaths(folder).record)
        return None

    def _forget(self, note: SetAside) -> None:
        """What follows for the simulations from a segment that is no data any more."""
        if note.simulation is None or note.segment is None or note.simulation not in self.simulations:
            return
        simulation = self.simulations[note.simulation]
        self.simulations[note.simulation] = replace(
            simulation,
            segments=tuple(s for s in simulation.segments if s.segment != note.segment),
            lost=simulation.lost | {note.segment},
        )
        for number, other in self.simulations.items():
            origin = other.origin
            if origin is None or other.segments or other.lost:
                continue
            if (origin.simulation, origin.segment) == (note.simulation, note.segment):
                reason = f"it cannot begin: its origin, {origin}, was damaged"
                self.simulations[number] = replace(other, failures=MAX_FAILURES, failure=reason)
        if self.newest is not None:
            self.newest = self._without_lost(self.newest)

    def _read_models(self) -> dict[int, ModelRecord]:
        """The newest good model of each latent size; one that is damaged is set aside."""
        models: dict[int, ModelRecord] = {}
        for folder in sorted(self.layout.models.glob("iteration-????/latent-*")):
            if not folder.is_dir() or folder.suffix:
                continue
            try:
                model = read_model(ModelPaths(folder))
            except DamagedError as error:
                set_aside(self.layout, folder, str(error), before_decision=self.n_decisions)
                continue
            models[model.latent_dim] = model
        return {dim: models[dim] for dim in self.latent_dims if dim in models}
