"""How long ``entk-app status`` takes on a large campaign: a synthetic run folder, made with the campaign's own records.

``python benchmarks/status_scale.py FOLDER [--frames N] [--segment-frames N] [--slots N]`` makes FOLDER if it is not
there (records only, no frames: status reads none), then times the command in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from entk_app.layout import RunLayout
from entk_app.records import (
    Action,
    AnalysisRecord,
    Decision,
    FileDigest,
    Finding,
    FrameRef,
    ModelOutliers,
    ModelRecord,
    ModelRef,
    Outlier,
    PilotRecord,
    Placement,
    SegmentProgress,
    SegmentRecord,
    SimulateTask,
    SystemRecord,
    append_record,
    order_by_rmsd,
    write_lines,
    write_record,
)
from entk_app.settings import build_settings, dump_yaml, read_preset

#: What every record of a segment names beside it.
FILES = {
    name: FileDigest(n_bytes=1_000_000, sha256="0" * 64)
    for name in ("trajectory.dcd", "frames.h5", "state.xml", "log.csv")
}
PLACE = Placement(
    host="node", task="task.000001", session="synthetic", devices=("0",), cores=(0, 1), pinned=True, emulated=False
)


def make_run(root: Path, n_frames: int, segment_frames: int, n_slots: int) -> None:
    """A campaign of a split pilot: an initial phase, then purges and restarts in every iteration."""
    layout, rng = RunLayout(root), np.random.default_rng(1)
    settings = build_settings(read_preset("fs-peptide")[1], assignments=["stop.max_iterations=5000"])
    interval, began = settings.simulate.report_interval_ps, time.time() - 1e6
    write(layout.settings, dump_yaml(settings))
    write_record(
        layout.system_record,
        SystemRecord(
            name="fs-peptide", model="all-atom", sequence="A" * 21, n_atoms=264, n_residues=21,
            ca_indices=tuple(range(21)), has_native=True, force_field="synthetic",
        ),
    )  # fmt: skip
    n_iterations = max(1, n_frames // (n_slots * segment_frames))
    alive, n_segments, next_id, outliers = [], {}, 0, ()
    decisions, lowest, made = [], 12.0, 0
    for iteration in range(1, n_iterations + 1):
        actions = []
        for place in range(n_slots):
            if iteration > 1 and rng.random() > 0.02:
                actions.append(Action(kind="continue", simulation=alive[place], reason="last outlier 12 frames ago"))
                continue
            if iteration > 1:
                actions.append(Action(kind="purge", simulation=alive[place], reason="20000 frames, none an outlier"))
                alive[place] = next_id
            else:
                alive.append(next_id)
            origin = outliers[place].frame if outliers else None
            kind = "restart" if origin else "start"
            actions.append(Action(kind=kind, simulation=next_id, reason="from an outlier", origin=origin))
            n_segments[next_id], next_id = 0, next_id + 1
        index, now = 2 * iteration - 2, began + 330.0 * iteration
        common = {"iteration": iteration, "n_frames": made, "min_rmsd_angstrom": lowest, "unix": now}
        decisions.append(
            Decision(index=index, next="simulate", reason="go on", actions=tuple(actions), n_outliers=50, **common)
        )
        refs = []
        for simulation in alive:
            segment, n = n_segments[simulation], segment_frames
            low = float(rng.uniform(3, 12))
            lowest, made = min(lowest, low), made + n
            record = SegmentRecord(
                simulation=simulation, segment=segment, iteration=iteration, decision=index, origin=None, seed=1,
                n_frames=n, steps=n * settings.steps_per_frame, first_step=segment * n * settings.steps_per_frame,
                time_ps=n * interval, start_time_ps=segment * n * interval, min_rmsd_angstrom=low, min_rmsd_frame=3,
                last_rmsd_angstrom=low + 1, platform="CUDA", device="0", cores=6, placement=PLACE,
                friction_per_ps=91.0, temperature_k=300.0, ended_by="clock", seconds_setup=2.0, seconds_md=300.0,
                ns_per_day=1000.0, unix_start=now, unix_end=now + 300.0, files=FILES,
            )  # fmt: skip
            write_record(layout.segment(simulation, segment).record, record)
            refs.append(FrameRef(simulation=simulation, segment=segment, frame=int(rng.integers(n))))
            n_segments[simulation] += 1
        common |= {"n_frames": made, "min_rmsd_angstrom": lowest, "unix": now + 301.0}
        decisions.append(Decision(index=index + 1, next="learn", reason="train the models", **common))
        outliers = order_by_rmsd(
            Outlier(
                frame=FrameRef(
                    simulation=ref.simulation, segment=ref.segment, frame=(ref.frame + more) % segment_frames
                ),
                rmsd_angstrom=float(rng.uniform(3, 9)),
                found_by=tuple(Finding(latent_dim=dim, eps=0.3, distance=0.4) for dim in (3, 4, 5, 6)),
            )
            for ref in refs
            for more in range(6)
        )
        write_learning(layout, iteration, outliers, made, now)
    decisions.append(
        Decision(index=2 * n_iterations, iteration=n_iterations + 1, next="simulate", reason="go on", n_frames=made,
                 actions=tuple(Action(kind="continue", simulation=s, reason="goes on") for s in alive),
                 unix=began + 330.0 * (n_iterations + 1))
    )  # fmt: skip
    for simulation in alive:
        number = n_segments[simulation]
        order = SimulateTask(
            simulation=simulation, segment=number, iteration=n_iterations + 1, decision=2 * n_iterations, seed=1,
            origin=None, cores=6, gpus=1, previous=None, n_frames=None, minutes=5.0,
        )  # fmt: skip
        running = SegmentProgress(
            simulation=simulation, segment=number, n_frames=7, min_rmsd_angstrom=5.0, ns_per_day=990.0
        )
        paths = layout.segment(simulation, number)
        write_record(paths.task, order)
        write_record(paths.in_work().progress, running)
    append_record(
        layout.pilots,
        PilotRecord(number=0, session="synthetic", resource="ornl.dgx2", nodes=1, cores=96, gpus=16,
                    walltime_min=1e5, queued=False, unix_submitted=began, unix_began=began, unix_active=began),
    )  # fmt: skip
    write_lines(layout.decisions, decisions)
    print(
        f"{made:,} frames in {sum(n_segments.values()):,} segments of {next_id} simulations, {n_iterations} iterations"
    )


def write_learning(layout: RunLayout, iteration: int, outliers: tuple[Outlier, ...], n_frames: int, now: float) -> None:
    refs = [ModelRef(iteration=iteration, latent_dim=dim) for dim in (3, 4, 5, 6)]
    for ref in refs:
        model = ModelRecord(
            iteration=iteration, latent_dim=ref.latent_dim, architecture="paper", n_residues=21, n_parameters=1,
            n_train_frames=80_000, n_held_out_frames=20_000, batch_size=800, epochs=100, best_epoch=90,
            held_out_reconstruction=9.0, held_out_loss=12.0, train_loss=11.0, seconds_load=1.0, seconds_train=250.0,
            seconds_per_epoch=2.5, inference_ms_per_frame=0.1, platform="GPU", device="0", placement=PLACE, seed=1,
            unix_start=now, unix_end=now + 251.0,
        )  # fmt: skip
        write_record(layout.model(iteration, ref.latent_dim).record, model)
        write(layout.model(iteration, ref.latent_dim).task, "{}")
    analysis = AnalysisRecord(
        iteration=iteration, best_model=refs[0], outliers=outliers, n_frames=n_frames, min_rmsd_angstrom=3.0,
        models=tuple(ModelOutliers(model=r, eps=0.3, min_samples=10, n_frames=n_frames, n_outliers=50) for r in refs),
        seconds_encode=1.0, seconds_outliers=9.0, placement=PLACE, unix_start=now + 301, unix_end=now + 312,
    )  # fmt: skip
    write_record(layout.analysis(iteration), analysis)
    write(layout.analysis_task(iteration), "{}")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--segment-frames", type=int, default=70, help="5 minutes of the paper's Fs-peptide on a GPU")
    parser.add_argument("--slots", type=int, default=16)
    options = parser.parse_args()
    if not options.folder.exists():
        make_run(options.folder, options.frames, options.segment_frames, options.slots)
    for command in (["--json"], []):
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "entk_app", "status", str(options.folder), *command],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            seconds.append(time.monotonic() - began)
        counted = f"{json.loads(done.stdout)['n_frames']:,} frames, " if command else ""
        shown = " ".join(f"{value:.2f}" for value in seconds)
        print(f"entk-app status {' '.join(command)}: {counted}{shown} s, start of the process included")


if __name__ == "__main__":
    main()
