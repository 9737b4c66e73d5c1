"""A run folder as it stands, read while others write to it.

A record that is torn, or that goes between the listing and the look, is not there yet; nothing is raised for it.
Records only, never frames; what did not change since the last look is not read again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

from entk_app.errors import RecordError, RunFolderError
from entk_app.launcher import Launcher, find_launcher
from entk_app.layout import RunLayout
from entk_app.records import (
    Action,
    AnalysisRecord,
    Deadline,
    Decision,
    ModelRecord,
    PilotRecord,
    Record,
    SegmentProgress,
    SegmentRecord,
    Summary,
    SystemRecord,
    read_record,
)
from entk_app.settings import Settings, build_settings, read_config
from entk_app.steering import SimulationHistory

RecordType = TypeVar("RecordType", bound=Record)

_RECORD = "segment.json"
_SEGMENT = re.compile(r"segment-\d+")
_PARTIAL = re.compile(r"segment-\d+\.partial")
_ORDER = re.compile(r"segment-\d+\.task\.json")
_ITERATION = re.compile(r"iteration-(\d+)")
_ANALYSIS = re.compile(r"iteration-(\d+)\.json")


class _Segment(SegmentRecord):
    """A segment's record as it is read here: there are many, and entk-app verify asks whether one was altered."""

    model_config = ConfigDict(extra="ignore")

    # Not looked at, and most of the work.
    files: Any = None
    placement: Any = None


@dataclass(frozen=True)
class RunState:
    """What a look at a run folder found.

    Attributes
    ----------
    system : SystemRecord or None
        None while the folder is being made.
    simulations : dict of SimulationHistory
        By number: those that the decisions started, with their whole segments.
    starts : dict of Action
        The action that started each.
    progress : dict of SegmentProgress
        The segments in work, by simulation. One that an earlier try left, from before the order, is not among them.
    models : dict of ModelRecord
        The newest of each latent size of the settings.
    trained, to_train : dict of sets of int
        Latent sizes by iteration: with a model; whose training was ordered.
    analysed, to_analyse : sets of int
        Iterations, likewise.

    notes : tuple of str
        What could not be read although it is no longer being written.
    """

    settings: Settings
    system: SystemRecord | None
    decisions: tuple[Decision, ...]
    pilots: tuple[PilotRecord, ...]
    launcher: Launcher
    deadline: Deadline | None
    is_stop_requested: bool
    simulations: dict[int, SimulationHistory]
    starts: dict[int, Action]
    progress: dict[int, SegmentProgress]
    models: dict[int, ModelRecord]
    trained: dict[int, set[int]]
    to_train: dict[int, set[int]]
    analysis: AnalysisRecord | None
    analysed: set[int]
    to_analyse: set[int]
    summary: Summary | None
    now: float
    notes: tuple[str, ...]

    @property
    def last(self) -> Decision | None:
        return self.decisions[-1] if self.decisions else None

    @property
    def going(self) -> Decision | None:
        """The decision that the present stage follows from: the last that did not end a pilot's campaign."""
        return next((decision for decision in reversed(self.decisions) if decision.next != "stop"), None)

    @property
    def segments(self) -> list[SegmentRecord]:
        return [segment for simulation in self.simulations.values() for segment in simulation.segments]

    @property
    def best(self) -> SegmentRecord | None:
        """The segment with the frame nearest to the native structure."""
        scored = [segment for segment in self.segments if segment.min_rmsd_angstrom is not None]
        return min(scored, key=lambda segment: segment.min_rmsd_angstrom or 0.0, default=None)


@dataclass
class RunReader:
    """Looks at a run folder, again and again.

    Parameters
    ----------
    layout : RunLayout
    """

    layout: RunLayout
    _known: dict[Path, tuple[tuple[int, int, int], Any]] = field(default_factory=dict)

    def read(self, now: float) -> RunState:
        """Look once.

        Raises
        ------
        RunFolderError
            There is no campaign in the folder.
        SettingsError
            Its settings cannot be read.
        """
        layout = self.layout
        settings: Settings | None = self._remember(
            layout.settings, lambda: build_settings(read_config(layout.settings))
        )
        if settings is None:
            raise RunFolderError(f"{layout.root} holds no campaign: there is no settings.yaml in it")
        # Decisions first: what they ordered is looked for afterwards.
        decisions, decision_notes = self._read_lines(Decision, layout.decisions)
        pilots, pilot_notes = self._read_lines(PilotRecord, layout.pilots)
        starts = {a.simulation: a for d in decisions for a in d.actions if a.kind in ("start", "restart")}
        gone = {a.simulation for d in decisions for a in d.actions if a.kind in ("purge", "end")}
        simulations = {
            number: SimulationHistory(number, action.origin, self._read_segments(number), number not in gone)
            for number, action in starts.items()
        }
        trainings = {int(m[1]): _list(layout.models / m[0]) for m in _match(_ITERATION, _list(layout.models))}
        trained = {number: _latent_dims(names, "") for number, names in trainings.items()}
        analyses = _list(layout.analyses)
        return RunState(
            settings=settings,
            system=self.read_record(SystemRecord, layout.system_record),
            decisions=decisions,
            pilots=pilots,
            launcher=find_launcher(layout, now),
            deadline=self.read_record(Deadline, layout.deadline),
            is_stop_requested=layout.stop_request.exists(),
            simulations=simulations,
            starts=starts,
            progress={s.simulation: p for s in simulations.values() if s.alive and (p := self._read_progress(s))},
            models=self._read_models(trained, settings.train.latent_dims),
            trained=trained,
            to_train={number: _latent_dims(names, ".task.json") for number, names in trainings.items()},
            analysis=self._read_analysis(analyses),
            analysed={int(m[1]) for m in _match(_ANALYSIS, analyses)},
            to_analyse={int(m[1]) for m in _match(re.compile(r"iteration-(\d+)\.task\.json"), analyses)},
            summary=self.read_record(Summary, layout.summary),
            now=now,
            notes=(*decision_notes, *pilot_notes),
        )

    def read_record(self, kind: type[RecordType], path: Path) -> RecordType | None:
        """A record, or None where there is none that is whole."""
        record: RecordType | None = self._remember(path, lambda: read_record(kind, path))
        return record

    def _read_lines(self, kind: type[RecordType], path: Path) -> tuple[tuple[RecordType, ...], tuple[str, ...]]:
        """The whole lines of a JSON-lines file, and a note where one of them is no such record."""

        def read() -> tuple[tuple[RecordType, ...], tuple[str, ...]]:
            records: list[RecordType] = []
            # The last piece is empty, or a line that has no end yet.
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
                try:
                    values = json.loads(line)
                    values.pop("sha256", None)
                    records.append(kind.model_validate(values))
                except (ValueError, AttributeError, RecursionError):
                    # What follows cannot be understood without it.
                    return tuple(records), (f"{path.name} line {number} is damaged: it and what follows is left out",)
            return tuple(records), ()

        found: tuple[tuple[RecordType, ...], tuple[str, ...]] | None = self._remember(path, read)
        return found or ((), ())

    def _remember(self, path: Path, read: Callable[[], Any]) -> Any:
        """What was read of a file, again only when the file is another; None where it cannot be read."""
        try:
            found = path.stat()
            sign = (found.st_mtime_ns, found.st_size, found.st_ino)
            known = self._known.get(path)
            if known is None or known[0] != sign:
                known = self._known[path] = (sign, read())
        except (OSError, RecordError):
            self._known.pop(path, None)
            return None
        return known[1]

    def _read_segments(self, simulation: int) -> tuple[SegmentRecord, ...]:
        folder = self.layout.simulation(simulation)
        names = sorted(name for name in _list(folder) if _SEGMENT.fullmatch(name))
        found = (self._remember(path, partial(_read_segment, path)) for path in (folder / n / _RECORD for n in names))
        return tuple(record for record in found if record is not None)

    def _read_progress(self, simulation: SimulationHistory) -> SegmentProgress | None:
        """Of the segment in work, where it began after the newest order."""
        folder = self.layout.simulation(simulation.simulation)
        names = _list(folder)
        work = max((m[0] for m in _match(_PARTIAL, names)), default="")
        order = max((m[0] for m in _match(_ORDER, names)), default="")
        progress = folder / work / "progress.json"
        try:
            if progress.stat().st_mtime < (folder / order).stat().st_mtime:
                return None
        except OSError:
            return None
        record = self.read_record(SegmentProgress, progress)
        # One that was published between the two looks counts as whole.
        is_whole = record is not None and any(s.segment >= record.segment for s in simulation.segments)
        return None if is_whole else record

    def _read_models(self, trained: dict[int, set[int]], wanted: Sequence[int]) -> dict[int, ModelRecord]:
        newest: dict[int, ModelRecord] = {}
        for iteration in sorted(trained, reverse=True):
            for latent_dim in trained[iteration].intersection(wanted).difference(newest):
                record = self.read_record(ModelRecord, self.layout.model(iteration, latent_dim).record)
                if record is not None:
                    newest[latent_dim] = record
            if len(newest) == len(wanted):
                break
        return dict(sorted(newest.items()))

    def _read_analysis(self, names: Iterable[str]) -> AnalysisRecord | None:
        """The newest that can be read."""
        for name in sorted((m[0] for m in _match(_ANALYSIS, names)), reverse=True):
            record = self.read_record(AnalysisRecord, self.layout.analyses / name)
            if record is not None:
                return record
        return None


def _read_segment(path: Path) -> SegmentRecord:
    try:
        return _Segment.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RecordError(f"{path} is not a whole record: {error}") from None


def _list(folder: Path) -> list[str]:
    """Names in a folder; none where there is no folder."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _match(pattern: re.Pattern[str], names: Iterable[str]) -> list[re.Match[str]]:
    return [match for name in names if (match := pattern.fullmatch(name))]


def _latent_dims(names: Iterable[str], end: str) -> set[int]:
    return {int(match[1]) for match in _match(re.compile(rf"latent-(\d+){re.escape(end)}"), names)}
