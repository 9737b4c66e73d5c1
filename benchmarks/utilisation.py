"""How busy the simulation slots are, staged against concurrent: the paper's durations on an emulated node.

``python benchmarks/utilisation.py FOLDER [--slots 16 64 256] [--scale 0.2] [--iterations 4]``

Tasks take as long as the paper's (benchmarks/synthetic_task.py) times ``--scale`` and compute nothing; the rest is
real: pilot, EnTK, decisions, records. Each arm runs in a process of its own, for the same time after learning began.
Figures are of the task times in the accounting's ``tasks.csv``. What is scaled are the tasks, not EnTK: at scale 1 its
gaps weigh as much less. A second table tells what the first tasks, which are asked for all at once, wait for: at each
step of EnTK and RADICAL-Pilot the milliseconds from one task to the next, by their profiles.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import stat
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: Seconds of the paper's staged iteration: the longer of segment and training, then inference.
ITERATION_S = 60.0 * 7.0 + 5.13e-3 * 100_000


#: Steps of a task: component and event, or state, in the profiles.
STEPS = {
    "EnTK describes it": ("radical.entk.task_manager", "td_create"),
    "EnTK notes that it is submitted": ("radical.entk.appmanager", "pub_ack_state_SUBMITTING"),
    "the agent gives it its devices": ("agent_scheduling", "schedule_ok"),
    "the agent starts it": ("agent_executing", "task_run_ok"),
    "its process runs": ("", "rank_start"),
    "the agent sees its end": ("agent_executing", "task_run_stop"),
    "its devices are free": ("agent_scheduling", "unschedule_stop"),
    "EnTK's workflow has its end": ("radical.entk.wfprocessor", "advance DONE"),
    "EnTK notes its end": ("radical.entk.appmanager", "sync_recv_obj_state_DONE"),
}


def run_arm(folder: Path, coupling: str, n_slots: int, scale: float, minutes: float) -> None:
    """One campaign, in this process."""
    from entk_app.concurrent import make_campaign
    from entk_app.layout import RunLayout
    from entk_app.machine import divide_machine
    from entk_app.pilot import run_on_pilot
    from entk_app.resources import find_resource
    from entk_app.run_folder import create_run_folder
    from entk_app.settings import build_settings, read_preset
    from entk_app.systems import build_system, write_system

    layout = RunLayout(folder / "run")
    prefix = make_environment(folder, scale)
    make_resource(folder, n_slots)
    n_learn = n_slots // 4
    settings = build_settings(
        read_preset("villin-quick")[1],
        assignments=[
            # As the paper has it, and the most that learning can take.
            "train.retrain=always",
            f"coupling={coupling}", "resource.label=emulated.node", f"resource.md_slots={n_slots - n_learn}",
            f"resource.ml_slots={min(4, n_learn)}", "train.latent_dims=[3,4,5,6]", "steering.min_restarts=0",
            "simulate.segment_ns=null", f"simulate.segment_minutes={5 * scale}", "analyse.models=all",
            "steering.min_frames=300", "steering.window=100", "stop.target_rmsd_angstrom=null",
            "stop.max_iterations=1000", f"resource.walltime_min={minutes}",
            *(f"resource.environments.{kind}={prefix}" for kind in ("simulate", "train", "analyse")),
        ],
    )  # fmt: skip
    resource = find_resource(settings.resource, [folder / "resource_configs"])
    lock = create_run_folder(layout, settings, sys.argv)
    write_system(build_system(settings, cache=folder / "cache"), layout)
    machine = divide_machine(settings, resource.cores, resource.gpus, resource.nodes, allow_cpu=True)
    campaign = make_campaign(layout, settings, machine)
    campaign.on_decision = lambda decision: print(f"  {decision.index} {decision.reason}", flush=True)
    run_on_pilot(campaign, resource, lock)
    campaign.summarise()


def make_environment(folder: Path, scale: float) -> Path:
    """A task environment whose Python runs the synthetic task."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={HERE.parent} ENTK_APP_SYNTHETIC_SCALE={scale}\n"
        f'exec {sys.executable} {HERE / "synthetic_task.py"} "$@"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python.parent.parent


def make_resource(folder: Path, n_slots: int) -> None:
    """The emulated DGX-2 with another number of GPUs, six hardware threads each."""
    entry = json.loads((HERE.parent / "resource_configs" / "resource_local.json").read_text())["dgx2_emulated"]
    entry |= {"cores_per_node": 3 * n_slots, "gpus_per_node": n_slots}
    configs = folder / "resource_configs"
    configs.mkdir()
    (configs / "resource_emulated.json").write_text(json.dumps({"node": entry}))


def measure(run: Path, n_slots: int, seconds: float) -> dict[str, float]:
    """From the first training on, for so long: simulation slots' share in use, and the gaps between their tasks."""
    subprocess.run([sys.executable, "-m", "entk_app", "accounting", str(run)], check=True, stdout=subprocess.DEVNULL)
    with (run / "accounting" / "tasks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["unix_started"] and row["unix_stopped"]]
    times: dict[str, list[tuple[float, float, str]]] = {"simulate": [], "train": [], "analyse": []}
    for row in rows:
        times[row["kind"]].append((float(row["unix_started"]), float(row["unix_stopped"]), row["device_ids"]))
    begin = min(start for start, _, _ in times["train"])
    end = min(begin + seconds, max(stop for own in times.values() for _, stop, _ in own))
    within = [(max(a, begin), min(b, end)) for a, b, _ in times["simulate"] if a < end and b > begin]
    busy = sum(b - a for a, b in within)
    devices: dict[str, list[tuple[float, float]]] = {}
    for a, b, device in times["simulate"]:
        devices.setdefault(device, []).append((a, b))
    gaps = sorted(
        later[0] - earlier[1]
        for own in devices.values()
        for earlier, later in zip(sorted(own), sorted(own)[1:], strict=False)
        if begin <= earlier[1] and later[0] <= end
    )
    n_simulate = n_slots - n_slots // 4
    return {
        "seconds": end - begin,
        "busy_percent": 100.0 * busy / (n_simulate * (end - begin)),
        "busy_hours": busy / 3600.0,
        "n_segments": len(within),
        "gap_median_s": gaps[len(gaps) // 2] if gaps else float("nan"),
        "gap_90_s": gaps[int(0.9 * len(gaps))] if gaps else float("nan"),
        "iterations": sum(1 for _ in times["analyse"]),
    }


def say_gap(seconds: float) -> str:
    """A dash where no slot had a second task in the time."""
    return "-" if math.isnan(seconds) else f"{seconds:.2f} s"


def measure_steps(run: Path, n_tasks: int) -> dict[str, float]:
    """Milliseconds a task at each step, of the tasks of the first stage."""
    from entk_app.profiles import read_profile

    times: dict[str, dict[str, float]] = {step: {} for step in STEPS}
    agent = "radical/radical.pilot.sandbox/*/pilot.0000/*.prof"
    for pattern in ("radical/re.session*/*.prof", agent, "logs/*/*/*.prof"):
        for event in (event for path in sorted(run.glob(pattern)) for event in read_profile(path)):
            number = event.uid.removeprefix("task.")
            if not number.isdigit() or int(number) >= n_tasks:
                continue
            for step, (component, name) in STEPS.items():
                if event.component.startswith(component) and name in (event.name, f"{event.name} {event.state}"):
                    times[step].setdefault(event.uid, event.unix)
    return {
        step: 1e3 * (max(own.values()) - min(own.values())) / (len(own) - 1)
        for step, own in times.items()
        if len(own) > 1
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slots", type=int, nargs="+", default=[16])
    parser.add_argument("--scale", type=float, default=0.2)
    parser.add_argument("--iterations", type=float, default=4, help="staged ones that the time is for")
    parser.add_argument("--arm", choices=["staged", "concurrent"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = options.iterations * ITERATION_S * options.scale
    if options.arm:
        minutes = (seconds + 60 * 5 * options.scale) / 60 + 2
        run_arm(options.folder.resolve(), options.arm, options.slots[0], options.scale, minutes)
        return
    print("| GPUs | coupling | simulation slots busy | simulated, of staged | gap, median | gap, 90 % | segments |")
    print("|---|---|---|---|---|---|---|")
    steps = []
    for n_slots in options.slots:
        baseline = None
        for coupling in ("staged", "concurrent"):
            folder = options.folder.resolve() / f"{coupling}-{n_slots}"
            if not (folder / "run" / "summary.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                command = [sys.executable, __file__, str(folder), "--arm", coupling, "--slots", str(n_slots)]
                command += ["--scale", str(options.scale), "--iterations", str(options.iterations)]
                with (folder / "log").open("w") as log:
                    subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
            found = measure(folder / "run", n_slots, seconds)
            (folder / "result.json").write_text(json.dumps(found, indent=2))
            steps.append((n_slots, coupling, measure_steps(folder / "run", n_slots)))
            rate = found["busy_hours"] / found["seconds"]
            baseline = baseline or rate
            print(
                f"| {n_slots} | {coupling} | {found['busy_percent']:.1f} % | {rate / baseline:.2f} x "
                f"| {say_gap(found['gap_median_s'])} | {say_gap(found['gap_90_s'])} | {found['n_segments']} |",
                flush=True,
            )
    print("\n| ms a task, first stage |" + "".join(f" {n_slots} {coupling} |" for n_slots, coupling, _ in steps))
    print("|---|" + "---|" * len(steps))
    for step in STEPS:
        print(f"| {step} |" + "".join(f" {found.get(step, float('nan')):.1f} |" for _, _, found in steps))


if __name__ == "__main__":
    main()
