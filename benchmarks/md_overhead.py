"""What a simulate task costs beside the dynamics: against OpenMM stepping alone, before its first step, and on disk.

``python benchmarks/md_overhead.py [--preset fs-peptide-quick] [--interval-ps 0.5 5] [--rounds 7]``

Both arms have a context of the same System on one thread and step in turn, so many frames each; a round's ratio is of
the two one after the other. The task's figures are of whole processes, ``python -m entk_app.tasks simulate``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUND_S = 4.0


def compare_speed(preset: str, interval_ps: float, rounds: int) -> list[tuple[float, float]]:
    """ns/day alone and of a segment with its reporters, by round."""
    from entk_app import md
    from entk_app.frames import FrameWriter
    from entk_app.settings import build_settings, read_preset
    from entk_app.systems import build_system

    settings = build_settings(read_preset(preset)[1], assignments=[f"simulate.report_interval_ps={interval_ps}"])
    simulate, cache = settings.simulate, Path(tempfile.gettempdir())
    built = build_system(settings, cache=cache)
    start = md.Start(positions=built.start.positions, minimise=True)
    arms = []
    for _ in range(2):
        simulation, _ = md.create_context(built.start.topology, built.system, simulate, 1, 1)
        md.begin(simulation, start, simulate, 1)
        simulation.step(settings.steps_per_frame)
        arms.append(simulation)
    alone, reported = arms
    began = time.monotonic()
    alone.step(settings.steps_per_frame)
    n_frames = max(1, round(ROUND_S / (time.monotonic() - began)))
    speeds = []
    for _ in range(rounds):
        began = time.monotonic()
        alone.step(n_frames * settings.steps_per_frame)
        first = time.monotonic() - began
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            md.run_segment(
                reported,
                simulate,
                Path(folder),
                lambda positions, folder=folder: FrameWriter(
                    Path(folder) / "frames.h5",
                    built.record.n_residues,
                    built.native.ca_positions() if built.native else None,
                    simulate.contact_cutoff_angstrom,
                    positions,
                ),
                built.record.ca_indices,
                n_frames,
                None,
                60.0,
                names=("trajectory.dcd", "log.csv", "state.xml"),
            )
            second = time.monotonic() - began
        ns = n_frames * interval_ps * 1e-3
        speeds.append((ns / first * 86400, ns / second * 86400))
    return speeds


def measure_task(preset: str, repeats: int) -> tuple[list[float], dict[str, float]]:
    """Seconds from a task's process to its first step, and bytes a frame by file."""
    from entk_app.campaign import Campaign
    from entk_app.layout import RunLayout
    from entk_app.machine import divide_machine
    from entk_app.records import SegmentRecord, read_record
    from entk_app.run_folder import create_run_folder
    from entk_app.settings import build_settings, read_preset
    from entk_app.systems import build_system, write_system

    seconds, sizes = [], {}
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            layout = RunLayout(Path(folder) / "run")
            asked = [f"seed={repeat}", "simulate.segment_ns=0.05"]
            settings = build_settings(read_preset(preset)[1], assignments=asked)
            create_run_folder(layout, settings, ["benchmark"]).release()
            write_system(build_system(settings, cache=Path(tempfile.gettempdir())), layout)
            stage = Campaign(layout, settings, divide_machine(settings, 1, 0)).start()
            command = [sys.executable, "-m", "entk_app.tasks", "simulate", str(layout.root), str(stage.tasks[0].order)]
            began = time.time()
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            paths = layout.segment(0, 0)
            record = read_record(SegmentRecord, paths.record)
            seconds.append(record.unix_start + record.seconds_setup - began)
            sizes = {
                path.name: path.stat().st_size / record.n_frames
                for path in (paths.trajectory, paths.frames, paths.log, paths.state)
            }
    return seconds, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="fs-peptide-quick")
    parser.add_argument("--interval-ps", type=float, nargs="+", default=[0.5, 5.0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{options.preset}, one thread\n")
    print("| report interval | alone, ns/day | with all reporters | ratio, median | range |\n|---|---|---|---|---|")
    for interval in options.interval_ps:
        speeds = compare_speed(options.preset, interval, options.rounds)
        ratios = sorted(second / first for first, second in speeds)
        alone, reported = (statistics.median(pair[place] for pair in speeds) for place in (0, 1))
        print(
            f"| {interval:g} ps | {alone:.1f} | {reported:.1f} | {100 * statistics.median(ratios):.1f} % "
            f"| {100 * ratios[0]:.1f}-{100 * ratios[-1]:.1f} % |",
            flush=True,
        )
    seconds, sizes = measure_task(options.preset, 5)
    print(f"\nfrom a task's process to its first step: median {statistics.median(seconds):.1f} s of {len(seconds)}")
    print("\n| file | bytes a frame |\n|---|---|")
    for name, size in sizes.items():
        print(f"| {name} | {size:.0f} |")


if __name__ == "__main__":
    main()
