"""What retraining by the rule and from the last weights costs and gives, against training every iteration from nothing.

``python benchmarks/retraining.py --seeds 3 --iterations 12`` runs calpha villin campaigns in process, the three ways in
turn, and prints two tables: trainings, their time and their held-out loss; and the drift of new frames by iteration.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from entk_app.campaign import Campaign
from entk_app.errors import RecordError
from entk_app.inprocess import run_campaign
from entk_app.layout import RunLayout
from entk_app.machine import divide_machine
from entk_app.records import AnalysisRecord, ModelRecord, read_record
from entk_app.retraining import Drift, compute_drift
from entk_app.run_folder import create_run_folder
from entk_app.settings import build_settings, read_preset
from entk_app.systems import build_system, write_system

WAYS = {
    "every iteration, from nothing": ["train.retrain=always", "train.warm_start=false"],
    "every iteration, from the last weights": ["train.retrain=always"],
    "by the rule, from the last weights": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--slots", type=int, default=4)
    options = parser.parse_args()
    models: dict[str, list[list[ModelRecord]]] = {way: [] for way in WAYS}
    drifts: dict[int, list[Drift]] = {}
    for seed in range(1, options.seeds + 1):
        for way, assignments in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                campaign = run(Path(folder), seed, options.iterations, options.slots, assignments)
                models[way].append(read_models(campaign))
                if not assignments:
                    for iteration, drift in read_drifts(campaign):
                        drifts.setdefault(iteration, []).append(drift)
    print("| models train | trainings | time of all, s | epochs each | held-out reconstruction of the last |")
    print("|---|---|---|---|---|")
    for way, runs in models.items():
        values = (
            statistics.median(map(len, runs)),
            statistics.median(sum(m.seconds_train for m in run) for run in runs),
            statistics.median(m.epochs for run in runs for m in run),
            statistics.median(run[-1].held_out_reconstruction for run in runs),
        )
        print(f"| {way} | {values[0]:g} | {values[1]:.1f} | {values[2]:g} | {values[3]:.1f} |", flush=True)
    print("\n| iteration | drift of new frames, medians | lower bound | campaigns |\n|---|---|---|---|")
    for iteration, found in sorted(drifts.items()):
        share, bound = (statistics.median(getattr(d, name) for d in found) for name in ("share", "at_least"))
        print(f"| {iteration} | {share:+.0%} | {bound:+.0%} | {len(found)} |")


def run(folder: Path, seed: int, n_iterations: int, slots: int, assignments: list[str]) -> Campaign:
    own = [f"seed={seed}", f"stop.max_iterations={n_iterations}", "stop.target_rmsd_angstrom=0.1"]
    settings = build_settings(read_preset("villin-quick")[1], assignments=["train.latent_dims=[4]", *assignments, *own])
    layout = RunLayout(folder / "run")
    built = build_system(settings, cache=folder / "cache")
    create_run_folder(layout, settings, []).release()
    write_system(built, layout)
    campaign = Campaign(layout, settings, divide_machine(settings, slots, 0))
    run_campaign(campaign)
    return campaign


def read_models(campaign: Campaign) -> list[ModelRecord]:
    return [read_record(ModelRecord, path) for path in sorted(campaign.layout.models.glob("*/*/model.json"))]


def read_drifts(campaign: Campaign) -> list[tuple[int, Drift]]:
    """Of the iterations whose models served on."""
    found = []
    for iteration in range(1, campaign.iteration + 1):
        try:
            analysis = read_record(AnalysisRecord, campaign.layout.analysis(iteration))
        except RecordError:
            continue
        for model in analysis.models:
            if model.new_frames is not None:
                record = read_record(ModelRecord, campaign.layout.model(model.model.iteration, 4).record)
                found.append((iteration, compute_drift(model.new_frames, record)))
    return found


if __name__ == "__main__":
    main()
