"""Does the steering help, and by how much? Every arm on the same system, slots, segments, seeds and budget.

Calpha villin and BBA at a temperature where independent simulations rarely fold. Campaigns run in process, without a
pilot, two at a time; a campaign that was done before is not done again.

``python benchmarks/effective_performance/run.py --reference bba=1fme.pdb`` writes ``results.csv`` beside this file, a
row a campaign; ``table.py`` makes of it the table and the figure of docs/effective-performance.md.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

#: One core a campaign, TensorFlow's too.
os.environ.update({"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"})

from entk_app.campaign import Campaign
from entk_app.frames import read_columns
from entk_app.inprocess import run_campaign
from entk_app.layout import RunLayout
from entk_app.machine import divide_machine
from entk_app.run_folder import create_run_folder
from entk_app.settings import build_settings
from entk_app.systems import build_system, write_system

RESULTS = Path(__file__).with_name("results.csv")

#: Temperature in units of epsilon/kB, of each system.
TEMPERATURES = {"villin": 0.9, "bba": 1.0}

#: What all campaigns have in common.
COMMON: dict[str, dict[str, Any]] = {
    "system": {"model": "calpha"},
    "simulate": {"segment_ns": 0.08, "report_interval_ps": 2, "time_step_fs": 20, "friction_per_ps": 1},
    "train": {"latent_dims": [4], "epochs": 8, "patience": 4, "block_frames": 20, "max_frames": 2000},
    "analyse": {"max_outliers": 20},
    "stop": {"target_rmsd_angstrom": 2.0, "max_iterations": 100_000, "max_time_us": 0.006},
}
N_SLOTS = 4

#: One slot of four restarts in every iteration, where the paper's rule frees none: the best of what was tried on
#: villin.
STEERING = ["steering.min_frames=40", "steering.window=40", "steering.min_restarts=1"]

#: What an arm changes of it.
ARMS = {
    "none": ["steering.method=none"],
    "random": ["steering.method=random"],
    "rmsd-only": ["steering.method=rmsd-only"],
    "cvae": ["steering.method=cvae"],
    "cvae + best": ["analyse.best_frames=20"],
}

#: Tried on villin, with other seeds than the arms are reported with.
VARIANTS = {
    "cvae + best, mix": ["analyse.best_frames=20", "steering.ranking=mix"],
    "cvae, 2 of 4 restart": ["steering.min_restarts=2"],
    "cvae, 2 of 4, one a region": ["steering.min_restarts=2", "steering.one_per_region=true"],
    "cvae, 2 of 4, mix": ["steering.min_restarts=2", "steering.ranking=mix"],
}


@dataclass(frozen=True)
class Row:
    """A campaign: when the first frame was within the target, or how long it was not.

    ``time_us`` is the simulated time of all slots together until then.
    """

    system: str
    arm: str
    seed: int
    reached: int
    time_us: float
    min_rmsd_angstrom: float
    n_restarts: int
    n_iterations: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(TEMPERATURES))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=[*ARMS, *VARIANTS], metavar="ARM")
    parser.add_argument("--first", type=int, default=1, metavar="SEED")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--reference", action="append", default=[], metavar="SYSTEM=FILE", help="native structure")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    done = {(row.system, row.arm, row.seed) for row in read_rows(options.results)}
    references = dict(pair.split("=", 1) for pair in options.reference)
    asked = [
        (system, arm, seed, references.get(system), options.assignments)
        for seed in range(options.first, options.first + options.count)
        for system in options.systems
        for arm in options.arms
        if (system, arm, seed) not in done
    ]
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for number, row in enumerate(pool.imap_unordered(run_one, asked, chunksize=1), 1):
            append_row(options.results, row)
            print(f"{number}/{len(asked)} {(time.monotonic() - began) / 60:.1f} min: {row}", flush=True)


def run_one(asked: tuple[str, str, int, str | None, list[str]]) -> Row:
    """One campaign in a folder of its own, which does not stay."""
    system, arm, seed, reference, assignments = asked
    began = time.monotonic()
    own = {"system": {"name": system, "reference": reference, "reduced_temperature": TEMPERATURES[system]}}
    chosen = {**ARMS, **VARIANTS}[arm]
    settings = build_settings(COMMON, own, assignments=[*STEERING, *chosen, *assignments, f"seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        layout = RunLayout(Path(folder) / "run")
        built = build_system(settings, cache=Path(folder) / "cache")
        create_run_folder(layout, settings, []).release()
        write_system(built, layout)
        campaign = Campaign(layout, settings, divide_machine(settings, N_SLOTS, 0))
        summary = run_campaign(campaign)
        reached, time_us = find_first_passage(campaign)
    if summary.n_failed_tasks:
        raise RuntimeError(f"{asked}: {summary.n_failed_tasks} tasks failed: {summary.message}")
    return Row(
        system, arm, seed, reached, round(time_us, 9), round(summary.min_rmsd_angstrom or np.nan, 3),
        summary.n_restarts, summary.n_iterations, round(time.monotonic() - began, 1),
    )  # fmt: skip


def find_first_passage(campaign: Campaign) -> tuple[int, float]:
    """Whether a frame came within the target, and the aggregate simulated time until then, or in all.

    Segments of a decision run at the same time: when one of them is so far, the others are too.
    """
    target, before = campaign.settings.stop.target_rmsd_angstrom, 0.0
    by_decision: dict[int, list] = {}
    for simulation in campaign.results.simulations.values():
        for segment in simulation.segments:
            by_decision.setdefault(segment.decision, []).append(segment)
    for decision in sorted(by_decision):
        segments, first = by_decision[decision], np.inf
        for segment in segments:
            if segment.min_rmsd_angstrom <= target:
                paths = campaign.layout.segment(segment.simulation, segment.segment)
                rmsd = read_columns(paths.frames)["rmsd_angstrom"]
                frame = int(np.argmax(rmsd <= target)) + 1
                first = min(first, frame * campaign.settings.simulate.report_interval_ps)
        if np.isfinite(first):
            return 1, before + 1e-6 * sum(min(first, segment.time_ps) for segment in segments)
        before += 1e-6 * sum(segment.time_ps for segment in segments)
    return 0, before


def read_rows(path: Path) -> list[Row]:
    """The campaigns that are done; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            Row(**{field.name: _KINDS[field.type](row[field.name]) for field in fields(Row)})
            for row in csv.DictReader(stream)
        ]


_KINDS = {"str": str, "int": int, "float": float}


def append_row(path: Path, row: Row) -> None:
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(row))


if __name__ == "__main__":
    main()
