"""What a campaign costs before its first task and after its last, and while it waits: against a bare EnTK workflow.

``python benchmarks/startup.py FOLDER [--rounds 3]``

Both arms run in turn, each in a process of its own: a bare EnTK workflow of ``/bin/sh`` tasks as its documentation
has it, and a campaign on a pilot of the same resource (``local.localhost``) whose tasks compute nothing for seconds
(benchmarks/synthetic_task.py). A task notes when it begins and ends. CPU time is taken in the middle of a task that
waits.
"""

from __future__ import annotations

import argparse
import os
import stat
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent

#: Of the paper's durations: segment 6 s, training 8 s, analysis 10 s.
SCALE = 0.02

#: Seconds that the bare workflow's task waits, and for which CPU time is counted, beginning so long after the task.
WAIT_S, COUNTED_S, SETTLE_S = 14, 6.0, 3.0


def run_bare(folder: Path) -> None:
    """Two stages of one task each, in this process."""
    from radical import entk

    pipeline = entk.Pipeline()
    for seconds in (0, WAIT_S):
        stage = entk.Stage()
        task = entk.Task()
        task.executable = "/bin/sh"
        stamp = f"date +%s.%N >> {folder}/stamps"
        task.arguments = ["-c", f"{stamp}; sleep {seconds}; {stamp}"]
        stage.add_tasks(task)
        pipeline.add_stages(stage)
    manager = entk.AppManager()
    manager.resource_desc = {"resource": "local.localhost", "walltime": 30, "cpus": 2}
    manager.workflow = [pipeline]
    manager.run()


def command_of(arm: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command of an arm, and its environment."""
    environment = {**os.environ, "RADICAL_UTILS_NTPHOST": "."}
    # As in an activated environment.
    environment["VIRTUAL_ENV"] = sys.prefix
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if arm == "bare EnTK":
        for variable in ("HOME", "RADICAL_BASE"):
            environment[variable] = str(folder)
        return [sys.executable, __file__, str(folder), "--bare"], environment
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    stamp = f"date +%s.%N >> {folder}/stamps"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n{stamp}\n'
        f"export PYTHONPATH={HERE.parent} ENTK_APP_SYNTHETIC_SCALE={SCALE}\n"
        f'{sys.executable} {HERE / "synthetic_task.py"} "$@"\nresult=$?\n{stamp}\nexit $result\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    asked = ["stop.max_iterations=1", "simulate.segment_ns=null", f"simulate.segment_minutes={5 * SCALE}"]
    asked += [f"resource.environments.{kind}={python.parent.parent}" for kind in ("simulate", "train", "analyse")]
    command = [sys.executable, str(HERE.parent / "app.py"), "--preset", "villin-quick"]
    command += ["--run-dir", str(folder / "run")]
    for assignment in asked:
        command += ["--set", assignment]
    return command, environment


def cpu_seconds(process: psutil.Process) -> tuple[float, float]:
    """Of a process, and of it with all that it started and that still runs."""

    def own(one: psutil.Process) -> float:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return times.user + times.system

    alone = own(process)
    return alone, alone + sum(own(child) for child in process.children(recursive=True))


def measure(arm: str, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True)
    command, environment = command_of(arm, folder)
    stamps = folder / "stamps"
    with (folder / "log").open("w") as log:
        began = time.time()
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        watched, counted = psutil.Process(process.pid), None
        while process.poll() is None:
            time.sleep(0.05)
            # The second task, or batch of tasks, is the one that waits: two simulations have their stamps before.
            n_before = 2 if arm == "bare EnTK" else 4
            if counted is None and stamps.exists() and len(stamps.read_text().split()) > n_before:
                time.sleep(SETTLE_S)
                first, then = cpu_seconds(watched), time.time()
                time.sleep(COUNTED_S)
                second, elapsed = cpu_seconds(watched), time.time() - then
                counted = [100.0 * (b - a) / elapsed for a, b in zip(first, second, strict=True)]
        ended = time.time()
    if process.returncode or counted is None:
        raise SystemExit(f"{arm}: exit code {process.returncode}; see {folder / 'log'}")
    times = sorted(float(line) for line in stamps.read_text().split())
    return {
        "to the first task, s": times[0] - began,
        "from the last task, s": ended - times[-1],
        "launcher, % of a core": counted[0],
        "with all its processes, % of a core": counted[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.bare:
        run_bare(folder)
        return
    arms = ("bare EnTK", "campaign")
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds):
        rounds.append({arm: measure(arm, folder / f"{arm.split()[0]}-{number}") for arm in arms})
        for arm, found in rounds[-1].items():
            words = ", ".join(f"{key} {value:.1f}" for key, value in found.items())
            print(f"round {number} {arm}: {words}", flush=True)
    names = list(rounds[0]["campaign"])
    print(f"\n| median of {len(rounds)} | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for arm in arms:
        medians = [statistics.median(found[arm][name] for found in rounds) for name in names]
        print(f"| {arm} | " + " | ".join(f"{value:.1f}" for value in medians) + " |")
    ratios = [statistics.median(f["campaign"][name] / f["bare EnTK"][name] for f in rounds) for name in names]
    print("| campaign / bare | " + " | ".join(f"{value:.2f} x" for value in ratios) + " |")


if __name__ == "__main__":
    main()
