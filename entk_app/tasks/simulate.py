"""Simulate task: segments of one simulation, from its State, an outlier or the initial structure."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entk_app import md, sanity
from entk_app.errors import BrokenStructureError, DataError, Interrupted
from entk_app.frames import FrameWriter
from entk_app.integrity import check_file, digest_files, read_segment
from entk_app.layout import RunLayout, SegmentPaths
from entk_app.publish import Workplace
from entk_app.records import (
    Placement,
    SegmentProgress,
    SegmentRecord,
    SimulateTask,
    read_record,
    write_record,
)
from entk_app.scores import Scorer
from entk_app.settings import Settings, build_settings, read_config
from entk_app.systems.anatomy import describe_anatomy
from entk_app.systems.build import LoadedSystem, load_scorer, load_system, write_positions
from entk_app.tasks import Stopper, hang
from entk_app.trajectory import read_frame

logger = logging.getLogger(__name__)

#: Seconds between two progress records of a running segment.
_PROGRESS_SECONDS = 2.0


def run(layout: RunLayout, order: Path, placement: Placement) -> None:
    """Simulate what the order asks for, and publish it segment by segment."""
    unix_start = time.time()
    task = read_record(SimulateTask, order)
    stopper = Stopper(layout, layout.end_request(task.simulation))
    try:
        _run(layout, task, stopper, placement, unix_start)
    except Interrupted as reason:
        if stopper() != "decision":
            raise
        # As it was asked to: it has not failed.
        logger.info("%s", reason)


def _run(layout: RunLayout, task: SimulateTask, stopper: Stopper, placement: Placement, unix_start: float) -> None:
    if stopper() is not None:
        raise Interrupted(f"simulation {task.simulation} was ended before this segment began: there is nothing to keep")
    settings = build_settings(read_config(layout.settings))
    loaded = load_system(layout)
    scorer = load_scorer(layout, loaded, settings.simulate.contact_cutoff_angstrom)
    start = find_start(layout, task, loaded)
    noise_seed, velocity_seed = (int(s) for s in np.random.SeedSequence(task.seed).generate_state(2) >> 1)
    simulation, platform = md.create_context(
        loaded.topology, loaded.system, settings.simulate, noise_seed, task.cores, task.gpus, task.allow_cpu
    )
    logger.info("simulation %d on %s", task.simulation, platform)
    md.begin(simulation, start, settings.simulate, velocity_seed)
    running = _Running(layout, task, settings, loaded, scorer, simulation, platform, placement, stopper)
    segment, n_frames, minutes = task.segment, task.n_frames, task.minutes
    record = running.run_segment(segment, n_frames, minutes, unix_start)
    while record.ended_by == "save":
        segment += 1
        n_frames = None if n_frames is None else n_frames - record.n_frames
        minutes = None if minutes is None else minutes - record.seconds_md / 60.0
        record = running.run_segment(segment, n_frames, minutes, record.unix_end)


def find_start(layout: RunLayout, task: SimulateTask, loaded: LoadedSystem) -> md.Start:
    """The State of the segment before, else the outlier's frame, else the initial structure.

    Raises
    ------
    DamagedError
        The State or the outlier's trajectory is not as it was published.
    BrokenStructureError
        The outlier's positions are no structure of this molecule.
    """
    if task.previous is not None:
        before = layout.segment(task.simulation, task.previous)
        check_file(before.state, read_segment(before).files)
        return md.Start(state_xml=before.state.read_text(encoding="utf-8"))
    if task.origin is not None:
        frame = read_frame(layout, task.origin, loaded.record.is_periodic)
        problems = sanity.find_problems(frame.positions, describe_anatomy(loaded))
        if problems:
            raise BrokenStructureError(f"nothing is simulated from {task.origin}: {'; '.join(problems)}")
        return md.Start(positions=frame.positions, box=frame.box)
    return md.Start(positions=loaded.start, minimise=True)


@dataclass(frozen=True)
class _Running:
    """A simulation in its context, and what all segments of a task have in common."""

    layout: RunLayout
    task: SimulateTask
    settings: Settings
    loaded: LoadedSystem
    scorer: Scorer | None
    simulation: Any
    platform: str
    placement: Placement
    stopper: Stopper

    def run_segment(
        self, segment: int, n_frames: int | None, minutes: float | None, unix_start: float
    ) -> SegmentRecord:
        """One segment, from its first step to its publication."""
        task, seconds_setup = self.task, time.time() - unix_start
        paths = self.layout.segment(task.simulation, segment)
        if paths.folder.exists():
            raise DataError(f"{paths.folder} is there already: a finished segment is never run again")
        place = Workplace(paths.folder, self.settings.resource.node_local_path)
        work, progress = SegmentPaths(place.folder), SegmentPaths(place.partial).progress
        try:
            result = md.run_segment(
                self.simulation,
                self.settings.simulate,
                work.folder,
                lambda positions: self._make_writer(work.frames, segment, positions),
                self.loaded.record.ca_indices,
                n_frames,
                minutes,
                self.settings.faults.save_minutes,
                names=(work.trajectory.name, work.log.name, work.state.name),
                chains=self.loaded.record.chains,
                compute_score=self.scorer,
                should_stop=self.stopper,
                on_frame=_report_progress(task.simulation, segment, progress),
            )
            record = self._to_record(segment, result, seconds_setup, unix_start).model_copy(
                update={"files": digest_files((work.trajectory, work.frames, work.state, work.log))}
            )
            write_record(work.record, record)
            progress.unlink(missing_ok=True)
            place.publish()
        except Interrupted:
            # Before its first frame: nothing is lost.
            shutil.rmtree(place.partial)
            raise
        finally:
            place.discard()
        logger.info("segment %d: %d frames, lowest RMSD %s", segment, record.n_frames, record.min_rmsd_angstrom)
        return record

    def _make_writer(self, path: Path, segment: int, positions: NDArray[np.floating]) -> FrameWriter:
        if segment == 0:
            path_start = self.layout.start_structure(self.task.simulation)
            box = md.get_box(self.simulation) if self.loaded.record.is_periodic else None
            write_positions(path_start, self.loaded.topology, positions, box)
        return FrameWriter(
            path,
            self.loaded.record.n_residues,
            self.loaded.native_ca,
            self.settings.simulate.contact_cutoff_angstrom,
            positions,
            score=self.loaded.record.score,
        )

    def _to_record(
        self, segment: int, result: md.SegmentResult, seconds_setup: float, unix_start: float
    ) -> SegmentRecord:
        return SegmentRecord(
            simulation=self.task.simulation,
            segment=segment,
            iteration=self.task.iteration,
            decision=self.task.decision,
            origin=self.task.origin,
            seed=self.task.seed,
            n_frames=result.n_frames,
            steps=result.steps,
            first_step=result.first_step,
            time_ps=result.time_ps,
            start_time_ps=result.start_time_ps,
            min_rmsd_angstrom=result.min_rmsd,
            min_rmsd_frame=result.min_rmsd_frame,
            last_rmsd_angstrom=result.last_rmsd,
            best_score=result.best_score,
            best_score_frame=result.best_score_frame,
            platform=self.platform,
            device=self.placement.device,
            cores=self.task.cores,
            placement=self.placement,
            friction_per_ps=self.settings.simulate.friction_per_ps,
            temperature_k=self.settings.simulate.temperature_k,
            ended_by=result.ended_by,
            seconds_setup=seconds_setup,
            seconds_md=result.seconds_md,
            seconds_writing=result.seconds_writing,
            ns_per_day=result.ns_per_day,
            unix_start=unix_start,
            unix_end=time.time(),
        )


def _report_progress(simulation: int, segment: int, path: Path) -> Callable[[FrameWriter, float], None]:
    last = time.monotonic()

    def report(writer: FrameWriter, ns_per_day: float) -> None:
        nonlocal last
        hang.beat()
        now = time.monotonic()
        if now - last < _PROGRESS_SECONDS:
            return
        last = now
        write_record(
            path,
            SegmentProgress(
                simulation=simulation,
                segment=segment,
                n_frames=writer.n_frames,
                min_rmsd_angstrom=writer.min_rmsd,
                ns_per_day=ns_per_day,
            ),
        )

    return report
