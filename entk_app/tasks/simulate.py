"""Simulate task: one segment of one simulation, from its State, an outlier or the initial structure."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from entk_app import md
from entk_app.errors import DataError
from entk_app.frames import FrameWriter
from entk_app.layout import RunLayout
from entk_app.records import (
    FrameRef,
    Placement,
    SegmentProgress,
    SegmentRecord,
    SimulateTask,
    read_record,
    write_record,
)
from entk_app.settings import Settings, build_settings, read_config
from entk_app.systems.build import LoadedSystem, load_system, write_positions
from entk_app.tasks import Stopper

logger = logging.getLogger(__name__)

#: Seconds between two progress records of a running segment.
_PROGRESS_SECONDS = 2.0


def run(layout: RunLayout, order: Path, placement: Placement) -> None:
    """Run the segment that the order asks for and publish its folder."""
    unix_start = time.time()
    task = read_record(SimulateTask, order)
    settings = build_settings(read_config(layout.settings))
    loaded = load_system(layout)
    paths = layout.segment(task.simulation, task.segment)
    work = paths.in_work()
    if paths.folder.exists():
        raise DataError(f"{paths.folder} is there already: a finished segment is never run again")
    # What an earlier try of this very segment left is not data.
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder.mkdir(parents=True)
    start = find_start(layout, task, loaded)
    noise_seed, velocity_seed = (int(s) for s in np.random.SeedSequence(task.seed).generate_state(2) >> 1)
    simulation, platform = md.create_context(
        loaded.topology, loaded.system, settings.simulate, noise_seed, task.cores, task.gpus, task.allow_cpu
    )
    logger.info("%s on %s", paths.folder.name, platform)
    seconds_setup = time.time() - unix_start

    def make_writer(positions: NDArray[np.floating]) -> FrameWriter:
        if task.segment == 0:
            write_positions(layout.start_structure(task.simulation), loaded.topology, positions)
        return FrameWriter(
            work.frames,
            loaded.record.n_residues,
            loaded.native_ca,
            settings.simulate.contact_cutoff_angstrom,
            positions,
        )

    result = md.run_segment(
        simulation,
        start,
        settings.simulate,
        work.folder,
        make_writer,
        loaded.record.ca_indices,
        velocity_seed,
        settings.frames_per_segment,
        names=(work.trajectory.name, work.log.name, work.state.name),
        should_stop=Stopper(layout),
        on_frame=_report_progress(task, work.progress),
    )
    work.progress.unlink(missing_ok=True)
    record = _to_record(task, settings, result, platform, placement, seconds_setup, unix_start)
    write_record(work.record, record)
    os.replace(work.folder, paths.folder)
    logger.info("%d frames, lowest RMSD %s", record.n_frames, record.min_rmsd_angstrom)


def find_start(layout: RunLayout, task: SimulateTask, loaded: LoadedSystem) -> md.Start:
    """The State of the segment before, else the outlier's frame, else the initial structure."""
    if task.segment > 0:
        before = layout.segment(task.simulation, task.segment - 1).state
        return md.Start(state_xml=before.read_text(encoding="utf-8"))
    if task.origin is not None:
        return md.Start(positions=read_frame_positions(layout, task.origin))
    return md.Start(positions=loaded.start, minimise=True)


def read_frame_positions(layout: RunLayout, ref: FrameRef) -> NDArray[np.float64]:
    """Positions of one frame, shape (n_atoms, 3), ångström, read by its place in its own segment.

    Raises
    ------
    DataError
        The trajectory has no such frame.
    """
    from MDAnalysis.lib.formats.libdcd import DCDFile

    path = layout.segment(ref.simulation, ref.segment).trajectory
    with DCDFile(str(path)) as trajectory:
        if not 0 <= ref.frame < len(trajectory):
            raise DataError(f"{path} has {len(trajectory)} frames, there is no frame {ref.frame}")
        trajectory.seek(ref.frame)
        return trajectory.read().xyz.astype(np.float64)


def _report_progress(task: SimulateTask, path: Path):
    last = time.monotonic()

    def report(writer: FrameWriter, ns_per_day: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PROGRESS_SECONDS:
            return
        last = now
        write_record(
            path,
            SegmentProgress(
                simulation=task.simulation,
                segment=task.segment,
                n_frames=writer.n_frames,
                min_rmsd_angstrom=writer.min_rmsd,
                ns_per_day=ns_per_day,
            ),
        )

    return report


def _to_record(
    task: SimulateTask,
    settings: Settings,
    result: md.SegmentResult,
    platform: str,
    placement: Placement,
    seconds_setup: float,
    unix_start: float,
) -> SegmentRecord:
    return SegmentRecord(
        simulation=task.simulation,
        segment=task.segment,
        iteration=task.iteration,
        decision=task.decision,
        origin=task.origin,
        seed=task.seed,
        n_frames=result.n_frames,
        steps=result.steps,
        first_step=result.first_step,
        time_ps=result.time_ps,
        start_time_ps=result.start_time_ps,
        min_rmsd_angstrom=result.min_rmsd,
        min_rmsd_frame=result.min_rmsd_frame,
        last_rmsd_angstrom=result.last_rmsd,
        platform=platform,
        device=placement.device,
        cores=task.cores,
        placement=placement,
        friction_per_ps=settings.simulate.friction_per_ps,
        temperature_k=settings.simulate.temperature_k,
        ended_by=result.ended_by,
        seconds_setup=seconds_setup,
        seconds_md=result.seconds_md,
        ns_per_day=result.ns_per_day,
        unix_start=unix_start,
        unix_end=time.time(),
    )
