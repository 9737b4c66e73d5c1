"""Reread all that a campaign kept, and say what is missing, truncated, altered, orphaned or contradicts itself.

Nothing is changed. Every file that a record holds a digest of is read to its end; numbers that stand in two places
are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from entk_app.errors import EntkAppError, RecordError
from entk_app.frames import find_altered_embeddings, read_columns, read_packed_maps
from entk_app.integrity import DamagedError, check_file, read_model, read_segment, read_set_aside
from entk_app.layout import ModelPaths, RunLayout, SegmentPaths
from entk_app.records import (
    AnalysisRecord,
    Decision,
    ModelRecord,
    PilotRecord,
    RunInfo,
    SegmentRecord,
    SetAside,
    SimulationRecord,
    Summary,
    SystemRecord,
    read_lines,
    read_record,
)
from entk_app.run_folder import read_settings
from entk_app.settings import Settings

#: Segments read at a time.
_READERS = 4

#: What belongs into a segment's and a model's folder beside the files that have a digest.
_OF_SEGMENT = {"segment.json"}
_OF_MODEL = {"model.json", "embeddings.h5"}

#: What a run folder holds; more may lie there only below the first of these.
_TOP = {
    "radical", "logs", "accounting", "report", "set-aside", "resource_configs", "settings.yaml", "run.json",
    "decisions.jsonl", "summary.json", "pilots.jsonl", "deadline.json", "stop.request", "campaign.lock", "system",
    "simulations", "models", "analysis",
}  # fmt: skip


@dataclass
class Findings:
    """What a reading of a run folder came to.

    Attributes
    ----------
    problems : list of (path, sentence)
        Of what cannot be trusted.
    notes : list of str
        What is as it may be: set aside, unfinished.
    """

    problems: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_segments: int = 0
    n_frames: int = 0
    n_models: int = 0
    n_analyses: int = 0
    n_bytes: int = 0

    def add(self, path: Path, sentence: str) -> None:
        self.problems.append((path, sentence))


def verify_run(layout: RunLayout) -> Findings:
    """Read everything of a campaign.

    Parameters
    ----------
    layout : RunLayout
        Of a campaign that has ended, or runs: what it is writing just now is left alone.

    Raises
    ------
    RunFolderError
        There is no campaign in the folder.
    """
    settings = read_settings(layout)
    found = Findings()
    _check_single(layout, found)
    decisions = _read_all(Decision, layout.decisions, found)
    if not decisions and layout.simulations.exists():
        found.add(layout.decisions, "missing or empty, though there are simulations")
    _read_all(PilotRecord, layout.pilots, found)
    aside = _read_aside(layout, found)
    segments = _check_segments(layout, settings, found)
    _check_simulations(layout, settings, decisions, segments, aside, found)
    models = _check_models(layout, found)
    _check_analyses(layout, decisions, segments, models, aside, found)
    _check_summary(layout, decisions, segments, found)
    _check_orphans(layout, found)
    return found


def _check_single(layout: RunLayout, found: Findings) -> None:
    """The records of which there is one, and the system's files."""
    _try(found, layout.run_info, partial(read_record, RunInfo, layout.run_info))
    system = _try(found, layout.system_record, partial(read_record, SystemRecord, layout.system_record))
    for name in system.files if system is not None else ():
        path = layout.system / name
        _try(found, path, partial(check_file, path, system.files))


def _read_all(kind: Any, path: Path, found: Findings) -> list[Any]:
    """The records of a file of lines; what comes after a line that is damaged is left out."""
    records: list[Any] = []
    try:
        for record in read_lines(kind, path):
            records.append(record)
    except RecordError as error:
        found.add(path, str(error))
    return records


def _read_aside(layout: RunLayout, found: Findings) -> list[SetAside]:
    try:
        notes = read_set_aside(layout)
    except RecordError as error:
        found.add(layout.set_aside_notes, str(error))
        return []
    for note in notes:
        found.notes.append(f"{note.path} was set aside as {note.kept_as}: {note.reason}")
    known = {layout.root / note.kept_as for note in notes} | {layout.set_aside_notes}
    for path in layout.set_aside.glob("*"):
        if path not in known:
            found.add(path, "nobody noted why it is set aside")
    return notes


def _check_segments(layout: RunLayout, settings: Settings, found: Findings) -> dict[tuple[int, int], SegmentRecord]:
    """Every published segment: its record, its files, and that they say the same."""
    folders = [
        layout.segment(int(folder.name), number)
        for folder in sorted(layout.simulations.glob("[0-9]*"))
        for number in layout.segment_numbers(int(folder.name))
    ]
    segments = {}
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        read = readers.map(lambda paths: _read_segment(layout, settings, paths), folders)
        for paths, (record, sentences) in zip(folders, read, strict=True):
            for sentence in sentences:
                found.add(paths.folder, sentence)
            if record is not None:
                segments[(record.simulation, record.segment)] = record
                found.n_segments += 1
                found.n_frames += record.n_frames
                found.n_bytes += sum(digest.n_bytes for digest in record.files.values())
    return segments


def _read_segment(layout: RunLayout, settings: Settings, paths: SegmentPaths) -> tuple[SegmentRecord | None, list[str]]:
    try:
        record = read_segment(paths)
        for name in record.files:
            check_file(paths.folder / name, record.files)
    except DamagedError as error:
        return None, [str(error)]
    sentences = []
    if not record.files:
        sentences.append("its record holds no checksums: it cannot be told whether its files are what they were")
    strange = {path.name for path in paths.folder.iterdir()} - set(record.files) - _OF_SEGMENT
    if record.files and strange:
        sentences.append(f"no record knows what is beside it: {', '.join(sorted(strange))}")
    asked = settings.simulate
    if (record.temperature_k, record.friction_per_ps) != (asked.temperature_k, asked.friction_per_ps):
        sentences.append(
            f"it was run at {record.temperature_k:g} K and {record.friction_per_ps:g}/ps, the campaign's settings say "
            f"{asked.temperature_k:g} K and {asked.friction_per_ps:g}/ps"
        )
    try:
        sentences += _compare_frames(record, paths, settings.steps_per_frame)
    except Exception as error:
        # Whatever a reader of HDF5 or DCD meets: the file is not one.
        sentences.append(f"{type(error).__name__}: {error}")
    return record, sentences


def _compare_frames(record: SegmentRecord, paths: SegmentPaths, steps_per_frame: int) -> Iterator[str]:
    from MDAnalysis.lib.formats.libdcd import DCDFile

    packed, _ = read_packed_maps(paths.frames)
    columns = read_columns(paths.frames)
    with DCDFile(str(paths.trajectory)) as trajectory:
        lengths = {"frames.h5": len(packed), "trajectory.dcd": len(trajectory)}
    lengths |= {f"frames.h5 {name}": len(values) for name, values in columns.items()}
    for name, length in lengths.items():
        if length != record.n_frames:
            yield f"{name} has {length} frames, its record says {record.n_frames}"
    expected = [record.first_step + steps_per_frame * (frame + 1) for frame in range(record.n_frames)]
    if columns["step"].tolist() != expected:
        yield f"its frames are not {steps_per_frame} steps apart from step {record.first_step} on"
    rmsd = columns.get("rmsd_angstrom")
    if rmsd is not None and len(rmsd) and float(rmsd.min()) != record.min_rmsd_angstrom:
        yield f"the lowest RMSD of its frames is {rmsd.min():.6f} Å, its record says {record.min_rmsd_angstrom}"
    score, place = columns.get("score"), record.best_score_frame
    if score is not None and (place is None or not place < len(score) or float(score[place]) != record.best_score):
        yield f"its record says that frame {place} has the best score, {record.best_score}: its frames do not"


def _check_simulations(
    layout: RunLayout,
    settings: Settings,
    decisions: list[Decision],
    segments: dict[tuple[int, int], SegmentRecord],
    aside: list[SetAside],
    found: Findings,
) -> None:
    """Every simulation: that a decision started it, from where it says, and that its segments follow one another."""
    started = {a.simulation: a for d in decisions for a in d.actions if a.kind in ("start", "restart")}
    lost = {(note.simulation, note.segment) for note in aside if note.segment is not None}
    for folder in sorted(path for path in layout.simulations.glob("*") if path.is_dir()):
        action = started.get(int(folder.name)) if folder.name.isdigit() else None
        if action is None:
            found.add(folder, "orphaned: no decision started this simulation")
            continue
        number = int(folder.name)
        path = layout.simulation_record(number)
        record = _try(found, path, partial(read_record, SimulationRecord, path))
        if record is not None and (record.simulation, record.origin) != (number, action.origin):
            found.add(path, f"it says origin {record.origin}, the decision that started it {action.origin}")
        own = [segment for (simulation, _), segment in sorted(segments.items()) if simulation == number]
        gone = {n for simulation, n in lost if simulation == number and n is not None}
        numbers = sorted({segment.segment for segment in own} | gone)
        if numbers != list(range(len(numbers))):
            found.add(folder, f"segments are missing: there are {', '.join(map(str, numbers))}")
        for segment in own:
            if segment.origin != action.origin:
                found.add(folder, f"segment {segment.segment} says origin {segment.origin}, not {action.origin}")
            if segment.decision >= len(decisions):
                found.add(folder, f"segment {segment.segment} is of decision {segment.decision}, which does not exist")
        last = None
        for segment in own:
            gap = any(n in gone for n in range(0 if last is None else last.segment + 1, segment.segment))
            begins = 0 if last is None else last.first_step + last.steps
            if segment.first_step != begins and not (gap and segment.first_step > begins):
                found.add(folder, f"segment {segment.segment} begins at step {segment.first_step}, not at {begins}")
            last = segment
    newest = {action.simulation for action in decisions[-1].actions} if decisions else set()
    for number in started:
        folder = layout.simulation(number)
        if folder.is_dir():
            continue
        if number in newest:
            found.notes.append(f"{folder.relative_to(layout.root)}: not begun yet, as the last decision asks for it")
        else:
            found.add(folder, "missing: a decision started this simulation")


def _check_models(layout: RunLayout, found: Findings) -> dict[tuple[int, int], ModelRecord]:
    models = {}
    for folder in sorted(layout.models.glob("iteration-*/latent-*")):
        if not folder.is_dir() or folder.suffix:
            continue
        paths = ModelPaths(folder)
        try:
            record = read_model(paths)
            for name in record.files:
                check_file(folder / name, record.files)
        except DamagedError as error:
            found.add(folder, str(error))
            continue
        models[(record.iteration, record.latent_dim)] = record
        found.n_models += 1
        found.n_bytes += sum(digest.n_bytes for digest in record.files.values())
        if folder != layout.model(record.iteration, record.latent_dim).folder:
            found.add(folder, f"it holds the model of iteration {record.iteration}, latent size {record.latent_dim}")
        if paths.embeddings.exists():
            altered = _try(found, paths.embeddings, partial(find_altered_embeddings, paths.embeddings))
            for name in altered or ():
                found.add(paths.embeddings, f"coordinates of {name} are altered: the next analysis makes them anew")
        # What an analysis is writing just now has no name yet.
        there = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
        strange = there - set(record.files) - _OF_MODEL
        if record.files and strange:
            found.add(folder, f"no record knows what is in it: {', '.join(sorted(strange))}")
    return models


def _check_analyses(
    layout: RunLayout,
    decisions: list[Decision],
    segments: dict[tuple[int, int], SegmentRecord],
    models: dict[tuple[int, int], ModelRecord],
    aside: list[SetAside],
    found: Findings,
) -> None:
    lost = {(note.simulation, note.segment) for note in aside}
    gone = {layout.root / note.path for note in aside}
    for decision in decisions:
        # A decision that goes on counts the next iteration already.
        path = layout.analysis(decision.iteration - (decision.next != "stop"))
        if decision.n_outliers is not None and not path.exists() and path not in gone:
            found.add(path, f"missing: decision {decision.index} was taken by it")
    for path in sorted(layout.analyses.glob("iteration-????.json")):
        record = _try(found, path, partial(read_record, AnalysisRecord, path))
        if record is None:
            continue
        found.n_analyses += 1
        for used in record.models:
            place = (used.model.iteration, used.model.latent_dim)
            if place not in models and layout.model(*place).folder not in gone:
                found.add(path, f"the model of iteration {place[0]}, latent size {place[1]}, that it used is missing")
        for outlier in record.outliers:
            place = (outlier.frame.simulation, outlier.frame.segment)
            if place in lost:
                continue
            segment = segments.get(place)
            if segment is None or not 0 <= outlier.frame.frame < segment.n_frames:
                found.add(path, f"there is no frame {outlier.frame} that it names")
                break


def _check_summary(
    layout: RunLayout,
    decisions: list[Decision],
    segments: dict[tuple[int, int], SegmentRecord],
    found: Findings,
) -> None:
    for place, decision in enumerate(decisions):
        if decision.index != place:
            found.add(layout.decisions, f"decision {decision.index} stands at place {place}")
            break
    if not layout.summary.exists():
        found.notes.append("there is no summary: the campaign runs, or its launcher was killed")
        return
    summary = _try(found, layout.summary, partial(read_record, Summary, layout.summary))
    # A summary is of the last end: a campaign that was taken up again has more by now.
    if summary is None or not decisions or decisions[-1].next != "stop" or decisions[-1].reason != summary.message:
        return
    n_frames = sum(segment.n_frames for segment in segments.values())
    if summary.n_frames != n_frames:
        found.add(layout.summary, f"it counts {summary.n_frames} frames, there are {n_frames}")


def _check_orphans(layout: RunLayout, found: Findings) -> None:
    """What nothing in the campaign accounts for."""
    for path in sorted(layout.root.iterdir()):
        if path.name not in _TOP and not path.name.endswith(".tmp"):
            found.add(path, "orphaned: it is no part of a run folder")
    for folder, known in (
        (
            "simulations/*",
            r"(simulation\.json|start\.pdb|end\.request)|segment-\d{4,}(\.partial|\.task\.json|\.failure\.json)?",
        ),
        ("models/iteration-*", r"latent-\d+(\.partial|\.task\.json|\.failure\.json)?"),
        ("analysis", r"iteration-\d{4,}(\.json|\.task\.json|\.failure\.json)"),
    ):
        for path in sorted(layout.root.glob(f"{folder}/*")):
            if not re.fullmatch(known, path.name) and not path.name.endswith(".tmp"):
                found.add(path, "orphaned: nothing in the campaign knows it")
    for pattern, what in (
        ("simulations/*/segment-*.partial", "a segment that is being written, or was when its task was killed"),
        ("models/*/*.partial", "a model that is being trained, or was when its task was killed"),
    ):
        for path in sorted(layout.root.glob(pattern)):
            found.notes.append(f"{path.relative_to(layout.root)}: {what}")


def _try(found: Findings, path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (EntkAppError, OSError) as error:
        found.add(path, str(error))
        return None
