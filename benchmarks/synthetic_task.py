"""A task of a campaign that takes as long as the real one and computes nothing: for benchmarks of the coupling.

Run in place of ``python -m entk_app.tasks KIND RUN ORDER``. Durations are the paper's (Ma et al. 2019, table 2:
Fs-peptide on one V100), times ``ENTK_APP_SYNTHETIC_SCALE``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from entk_app.layout import RunLayout
from entk_app.placement import take_place
from entk_app.publish import Workplace
from entk_app.records import (
    AnalyseTask,
    AnalysisRecord,
    Finding,
    FrameRef,
    ModelOutliers,
    ModelRecord,
    Outlier,
    SegmentRecord,
    SimulateTask,
    TrainTask,
    order_by_rmsd,
    read_record,
    write_record,
)
from entk_app.tasks import Stopper

SCALE = float(os.environ["ENTK_APP_SYNTHETIC_SCALE"])

#: Minutes of a segment and of a training.
SEGMENT_MIN, TRAINING_MIN = 5.0, 7.0

#: Nanoseconds a minute, a frame each 50 ps; milliseconds of inference a frame, on the frames that learning began with.
NS_PER_MIN, FRAMES_PER_NS, INFERENCE_MS, INITIAL_FRAMES = 1.25, 20, 5.13, 100_000


def main(kind: str, run: Path, order: Path) -> None:
    began = time.time()
    layout, place = RunLayout(run), take_place()
    {"simulate": simulate, "train": train, "analyse": analyse}[kind](layout, order, place, began)


def wait(seconds: float, stopper: Stopper) -> str | None:
    end = time.time() + seconds
    while time.time() < end:
        time.sleep(min(0.5, max(0.0, end - time.time())))
        if (reason := stopper()) is not None:
            return reason
    return None


def simulate(layout: RunLayout, order: Path, place: object, began: float) -> None:
    task = read_record(SimulateTask, order)
    paths = layout.segment(task.simulation, task.segment)
    work = Workplace(paths.folder)
    # One simulation is not as fast as the other.
    rng = np.random.default_rng(task.seed)
    wanted = 60.0 * SEGMENT_MIN * SCALE * rng.uniform(0.98, 1.02)
    reason = wait(wanted, Stopper(layout, layout.end_request(task.simulation)))
    seconds = time.time() - began
    ps = 1000.0 * NS_PER_MIN * seconds / 60.0 / SCALE
    first = round(task.segment * 1e6)
    record = SegmentRecord(
        simulation=task.simulation, segment=task.segment, iteration=task.iteration, decision=task.decision,
        origin=task.origin, seed=task.seed, n_frames=max(1, round(ps / 1000.0 * FRAMES_PER_NS)), steps=1000,
        first_step=first, time_ps=ps, start_time_ps=0.0, min_rmsd_angstrom=5.0, min_rmsd_frame=0,
        last_rmsd_angstrom=6.0, platform="synthetic", device=place.device, cores=task.cores, placement=place,
        friction_per_ps=91.0, temperature_k=300.0, ended_by=reason or "clock", seconds_setup=0.0, seconds_md=seconds,
        ns_per_day=1800.0, unix_start=began, unix_end=time.time(),
    )  # fmt: skip
    write_record(work.folder / "segment.json", record)
    work.publish()


def train(layout: RunLayout, order: Path, place: object, began: float) -> None:
    task = read_record(TrainTask, order)
    work = Workplace(layout.model(task.iteration, task.latent_dim).folder)
    if wait(60.0 * TRAINING_MIN * SCALE, Stopper(layout)) is not None:
        sys.exit(130)
    record = ModelRecord(
        iteration=task.iteration, latent_dim=task.latent_dim, architecture="paper", n_residues=21, n_parameters=1,
        n_train_frames=1, n_held_out_frames=1, batch_size=1, epochs=100, best_epoch=1,
        held_out_reconstruction=1.0 / task.latent_dim, held_out_loss=1.0, train_loss=1.0, seconds_load=0.0,
        seconds_train=time.time() - began, seconds_per_epoch=1.0, inference_ms_per_frame=None, platform="CPU",
        device=place.device, placement=place, seed=task.seed, unix_start=began, unix_end=time.time(),
    )  # fmt: skip
    write_record(work.folder / "model.json", record)
    work.publish()


def analyse(layout: RunLayout, order: Path, place: object, began: float) -> None:
    """50 random frames are outliers: most simulations have one among their last frames, some are purged."""
    task = read_record(AnalyseTask, order)
    n_frames = sum(key.n_frames for key in task.segments)
    if wait(INFERENCE_MS / 1000.0 * (INITIAL_FRAMES + n_frames) * SCALE, Stopper(layout)) is not None:
        sys.exit(130)
    rng = np.random.default_rng(task.iteration)
    keys = [task.segments[int(place)] for place in rng.integers(len(task.segments), size=50)]
    frames = {FrameRef(simulation=k.simulation, segment=k.segment, frame=int(rng.integers(k.n_frames))) for k in keys}
    write_record(
        layout.analysis(task.iteration),
        AnalysisRecord(
            iteration=task.iteration, best_model=task.models[0], n_frames=n_frames, min_rmsd_angstrom=5.0,
            models=tuple(
                ModelOutliers(model=ref, eps=0.3, min_samples=10, n_frames=n_frames, n_outliers=len(frames))
                for ref in task.models
            ),
            outliers=order_by_rmsd(
                Outlier(
                    frame=frame, rmsd_angstrom=float(rng.uniform(3, 9)),
                    found_by=(Finding(latent_dim=3, eps=0.3, distance=0.4),),
                )
                for frame in sorted(frames, key=lambda frame: frame.key)
            ),
            seconds_encode=0.0, seconds_outliers=0.0, placement=place, unix_start=began, unix_end=time.time(),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    # As the interpreter of a task is called: -m entk_app.tasks KIND RUN ORDER.
    main(sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
