"""How long an analysis takes, and how much memory, at the size of the paper's Fs-peptide campaign.

``python benchmarks/analysis_scale.py FOLDER [--frames N] [--segment-frames N]`` makes a synthetic campaign in FOLDER
if there is none (chains that fold and unfold, written with the campaign's own writers; a model of each latent size
trained on a part of them), then runs the analyse task in processes of its own and prints a table.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from MDAnalysis.lib.formats.libdcd import DCDFile
from numpy.typing import NDArray

from entk_app.frames import FrameWriter
from entk_app.integrity import digest_files
from entk_app.layout import RunLayout
from entk_app.records import (
    AnalyseTask,
    AnalysisRecord,
    ModelRef,
    Placement,
    SegmentKey,
    SegmentRecord,
    TrainTask,
    read_lines,
    read_record,
    write_lines,
    write_record,
)
from entk_app.settings import build_settings, dump_yaml, read_preset
from entk_app.systems import build_system, write_system
from entk_app.tasks.train import run as train

N_RESIDUES = 21
N_SIMULATIONS = 16
DIMS = (3, 4, 5, 6)
PLACE = Placement(host="node", task=None, session=None, devices=(), cores=(0, 1), pinned=False, emulated=False)


def fold_chains(rng: np.random.Generator, n_frames: int) -> NDArray[np.float64]:
    """CA positions of a helix-forming chain, frame by frame: shape (n_frames, 21, 3), ångström.

    Helical stretches come and go (correlated along the chain and in time); angles and dihedrals of CA chains.
    """
    from scipy.signal import lfilter

    def wander(width: int, frames: float) -> NDArray[np.float64]:
        decay = np.exp(-1.0 / frames)
        kicks = rng.normal(size=(n_frames, width)) * np.sqrt(1 - decay**2)
        kicks[0] /= np.sqrt(1 - decay**2)
        return lfilter([1.0], [1.0, -decay], kicks, axis=0)

    order = 0.7 * wander(N_RESIDUES - 3, 200) + 0.7 * wander(1, 1000)
    helical = (order + np.roll(order, 1, axis=1) + np.roll(order, -1, axis=1)) / 1.7 > -0.2
    jitter, slow = wander(N_RESIDUES - 3, 5), wander(N_RESIDUES - 3, 50)
    dihedral = np.deg2rad(np.where(helical, 50 + 7 * jitter, -140 + 55 * slow + 20 * jitter))
    bent = np.concatenate([helical, helical[:, -1:]], axis=1)
    angle = np.deg2rad(np.where(bent, 91, 115) + np.where(bent, 3, 9) * wander(N_RESIDUES - 2, 3))
    chain = np.zeros((n_frames, N_RESIDUES, 3))
    chain[:, 1, 0] = 3.8
    chain[:, 2] = chain[:, 1] + 3.8 * np.stack([-np.cos(angle[:, 0]), np.sin(angle[:, 0]), 0 * angle[:, 0]], axis=1)
    for i in range(3, N_RESIDUES):
        chain[:, i] = _extend(chain[:, i - 3 : i], angle[:, i - 2], dihedral[:, i - 3])
    return chain


def _extend(
    last: NDArray[np.float64], angle: NDArray[np.float64], dihedral: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The next CA, 3.8 Å from the last of three."""
    forward = last[:, 2] - last[:, 1]
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    normal = np.cross(last[:, 1] - last[:, 0], forward)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    side = np.cross(normal, forward)
    along, across = -np.cos(angle), np.sin(angle)
    step = along[:, None] * forward + (across * np.cos(dihedral))[:, None] * side
    return last[:, 2] + 3.8 * (step + (across * np.sin(dihedral))[:, None] * normal)


def make_run(layout: RunLayout, n_frames: int, segment_frames: int) -> None:
    """Segments with their frames and records, and one model of each latent size."""
    began = time.monotonic()
    settings = build_settings(
        read_preset("fs-peptide")[1],
        # One bead a residue: what is read of a trajectory is the outliers' frames.
        assignments=["system.model=calpha", "train.architecture=fast", "train.epochs=5", "train.max_frames=20000"],
    )
    layout.root.mkdir(parents=True)
    layout.settings.write_text(dump_yaml(settings), encoding="utf-8")
    built = build_system(settings, cache=layout.root)
    write_system(built, layout)
    native = built.native.positions
    keys = []
    for simulation in range(N_SIMULATIONS):
        positions = fold_chains(np.random.default_rng([1, simulation]), n_frames // N_SIMULATIONS)
        for segment, start in enumerate(range(0, len(positions), segment_frames)):
            chains = positions[start : start + segment_frames]
            keys.append(SegmentKey(simulation=simulation, segment=segment, n_frames=len(chains)))
            write_segment(layout, keys[-1], chains, native)
    write_lines(layout.root / "keys.jsonl", keys)
    n_made, seconds = sum(key.n_frames for key in keys), time.monotonic() - began
    print(f"made {n_made:,} frames in {len(keys):,} segments: {seconds:.0f} s")
    few = tuple(keys[:: max(1, n_frames // 40_000)])
    for dim in DIMS:
        order = TrainTask(
            iteration=1, latent_dim=dim, seed=dim, segments=few, encode_all=False, cores=2, gpus=0, allow_cpu=True
        )
        write_record(layout.model(1, dim).task, order)
        train(layout, layout.model(1, dim).task, PLACE)


def write_segment(layout: RunLayout, key: SegmentKey, chains: NDArray[np.float64], native: NDArray[np.float64]) -> None:
    paths = layout.segment(key.simulation, key.segment)
    paths.folder.mkdir(parents=True)
    writer = FrameWriter(paths.frames, N_RESIDUES, native, 8.0, chains[0])
    for frame, chain in enumerate(chains):
        writer.add(frame, 50.0 * frame, chain)
    writer.flush()
    with DCDFile(str(paths.trajectory), "w") as trajectory:
        trajectory.write_header("", N_RESIDUES, 0, 1, 50.0, 0)
        for chain in chains.astype(np.float32):
            trajectory.write(chain, np.zeros(6, dtype=np.float32))
    for path in (paths.state, paths.log):
        path.write_text("stands for the file\n", encoding="utf-8")
    n = key.n_frames
    record = SegmentRecord(
        simulation=key.simulation, segment=key.segment, iteration=1, decision=0, origin=None, seed=1, n_frames=n,
        steps=n, first_step=0, time_ps=50.0 * n, start_time_ps=0.0, min_rmsd_angstrom=writer.min_rmsd,
        min_rmsd_frame=writer.min_rmsd_frame, last_rmsd_angstrom=writer.last_rmsd, platform="CUDA", device="0", cores=6,
        placement=PLACE, friction_per_ps=91.0, temperature_k=300.0, ended_by="clock", seconds_setup=2.0,
        seconds_md=300.0, ns_per_day=1000.0, unix_start=0.0, unix_end=300.0,
        files=digest_files((paths.trajectory, paths.frames, paths.state, paths.log)),
    )  # fmt: skip
    write_record(paths.record, record)


def analyse(layout: RunLayout, iteration: int, keys: Sequence[SegmentKey]) -> dict[str, float]:
    """One analyse task in a process of its own: seconds, of which encoding and outliers, and GB at most."""
    order = layout.analysis_task(iteration)
    order.parent.mkdir(exist_ok=True)
    layout.analysis(iteration).unlink(missing_ok=True)
    models = tuple(ModelRef(iteration=1, latent_dim=dim) for dim in DIMS)
    write_record(
        order, AnalyseTask(iteration=iteration, models=models, segments=tuple(keys), cores=2, gpus=0, allow_cpu=True)
    )
    command = [sys.executable, "-m", "entk_app.tasks", "analyse", str(layout.root), str(order)]
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"the analyse task failed: {' '.join(command)}")
    record = read_record(AnalysisRecord, layout.analysis(iteration))
    return {
        "frames": record.n_frames,
        "all, s": seconds,
        "encoding, s": record.seconds_encode,
        "outliers, s": record.seconds_outliers,
        "memory, GB": usage.ru_maxrss / 1e6,
    }


def compare_dbscan(n_points: int) -> None:
    """scikit-learn's DBSCAN at the eps that was found, and the search for it."""
    from sklearn.cluster import DBSCAN

    from entk_app.outliers import find_outliers

    points = np.random.default_rng(0).normal(size=(n_points, 4))
    began = time.monotonic()
    found = find_outliers(points, 50, workers=2)
    own, began = time.monotonic() - began, time.monotonic()
    labels = DBSCAN(eps=found.eps, min_samples=10, n_jobs=2).fit_predict(points)
    theirs = time.monotonic() - began
    same = set(np.flatnonzero(labels == -1).tolist()) == set(found.rows.tolist())
    print(
        f"\n{n_points:,} points: eps and outliers in {own:.2f} s, scikit-learn's DBSCAN at this eps {theirs:.1f} s, "
        f"{'the same noise' if same else 'OTHER NOISE'}"
    )


def search(n_points: int) -> None:
    """Outliers alone, of so many random points."""
    from entk_app.outliers import find_outliers

    for n_dims in (DIMS[0], DIMS[-1]):
        points = np.random.default_rng(0).normal(size=(n_points, n_dims)).astype(np.float32)
        began = time.monotonic()
        found = find_outliers(points, 50, workers=2)
        seconds, memory = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{n_points:,} points of {n_dims} dimensions: {len(found.rows)} outliers in {seconds:.1f} s, "
            f"{memory:.1f} GB at most"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=1_084_000)
    parser.add_argument("--segment-frames", type=int, default=70, help="5 minutes of the paper's Fs-peptide on a GPU")
    parser.add_argument("--dbscan", type=int, default=40_000, help="points for scikit-learn; 0: without")
    parser.add_argument("--search", type=int, default=10_000_000, help="points for the search alone; 0: without")
    options = parser.parse_args()
    layout = RunLayout(options.folder.resolve())
    if not layout.root.exists():
        make_run(layout, options.frames, options.segment_frames)
    keys = list(read_lines(SegmentKey, layout.root / "keys.jsonl"))
    for dim in DIMS:
        layout.model(1, dim).embeddings.unlink(missing_ok=True)
    n_old = round(0.99 * len(keys))
    rows = {"nothing known": analyse(layout, 1, keys[:n_old]), "1 % new": analyse(layout, 2, keys)}
    names = list(rows["1 % new"])
    print(f"| 4 models | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name, row in rows.items():
        cells = (f"{value:,.0f}" if key == "frames" else f"{value:.1f}" for key, value in row.items())
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if options.dbscan:
        compare_dbscan(options.dbscan)
    if options.search:
        search(options.search)


if __name__ == "__main__":
    main()
