"""Does the default campaign fold with other seeds? In process, without a pilot, so that many seeds take minutes.

``python benchmarks/folding_seeds.py --first 51 --count 12`` prints a row a seed and the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from entk_app.campaign import Campaign
from entk_app.inprocess import run_campaign
from entk_app.layout import RunLayout
from entk_app.machine import divide_machine
from entk_app.run_folder import create_run_folder
from entk_app.settings import build_settings, read_preset
from entk_app.systems import build_system, write_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="villin-quick")
    parser.add_argument("--first", type=int, default=1, metavar="SEED")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    print("| seed | stop | iterations | restarts | frames | lowest RMSD, Å |\n|---|---|---|---|---|---|")
    summaries = []
    for seed in range(options.first, options.first + options.count):
        values = read_preset(options.preset)[1]
        settings = build_settings(values, assignments=[*options.assignments, f"seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            layout = RunLayout(Path(folder) / "run")
            built = build_system(settings, cache=Path(folder) / "cache")
            create_run_folder(layout, settings, [])
            write_system(built, layout)
            summary = run_campaign(Campaign(layout, settings, divide_machine(settings, options.slots, 0)))
        summaries.append(summary)
        print(
            f"| {seed} | {summary.stop_reason} | {summary.n_iterations} | {summary.n_restarts} | {summary.n_frames} | "
            f"{summary.min_rmsd_angstrom:.2f} |",
            flush=True,
        )
    iterations = [summary.n_iterations for summary in summaries]
    print(
        f"\n{sum(s.stop_reason == 'target_rmsd' for s in summaries)} of {len(summaries)} folded; iterations: median "
        f"{statistics.median(iterations):g}, most {max(iterations)}; "
        f"with a restart: {sum(s.n_restarts > 0 for s in summaries)}"
    )


if __name__ == "__main__":
    main()
