"""One campaign, killed with SIGKILL at random moments until it has been killed often enough, and finished all the same.

``python tests/faults/chaos.py RUN --kills 25 --seed 1`` makes a tiny campaign in the new folder RUN and walks it in a
process of its own, again and again. It prints where each kill came and checks the run folder at the end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from check_invariants import check_invariants
from check_run import check_run
from conftest import prepare, tiny_settings

from entk_app.concurrent import make_campaign
from entk_app.inprocess import run_campaign
from entk_app.layout import RunLayout
from entk_app.machine import divide_machine
from entk_app.records import Decision, Summary, read_record, read_whole_lines
from entk_app.settings import Settings
from entk_app.verify import verify_run

#: A kill comes after so many seconds of a campaign's own time at most.
_LONGEST_S = 5.0

#: A process that neither ends nor is killed has hung.
_HUNG_S = 120.0


def ask_for(iterations: int) -> Settings:
    # Saved at every frame: kills fall between segments of one task too.
    return tiny_settings(
        "simulate.segment_ns=0.04", "steering.min_restarts=1", "steering.min_frames=10", "steering.window=5",
        "faults.save_minutes=1e-6", f"stop.max_iterations={iterations}",
    )  # fmt: skip


def walk(root: Path, settings: Settings, seconds: float | None) -> bool:
    """Let a process of its own go on with the campaign; kill it after so long. True where it came to the end."""
    pid = os.fork()
    if pid == 0:
        try:
            machine = divide_machine(settings, 3, 0, allow_cpu=True)
            run_campaign(make_campaign(RunLayout(root), settings, machine))
            os._exit(0)
        except BaseException as error:
            print(f"the campaign raised {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    began = time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        elapsed = time.monotonic() - began
        if ended and not os.WIFSIGNALED(status):
            if os.waitstatus_to_exitcode(status):
                raise SystemExit("a walk failed by itself: see above")
            return True
        if ended:
            return False
        if elapsed > _HUNG_S:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise SystemExit(f"a walk neither ended nor was killed in {_HUNG_S:g} s")
        if seconds is not None and elapsed >= seconds:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.002)


def describe(layout: RunLayout) -> str:
    """How far the campaign is, by what is on disk."""
    decisions = read_whole_lines(Decision, layout.decisions)
    n_segments = len(list(layout.simulations.glob("*/segment-????")))
    n_partial = len(list(layout.root.glob("*/*/*.partial")))
    last = f"iteration {decisions[-1].iteration}: {decisions[-1].next}" if decisions else "before its first decision"
    return f"{last}, {n_segments} segments, {n_partial} unfinished"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance, iterations, n_killed = random.Random(options.seed), 2, 0
    layout = RunLayout(options.run.absolute())
    prepare(layout.root, ask_for(iterations))
    longest, place = _LONGEST_S, ""
    while n_killed < options.kills:
        # Many of them soon: while it reads what is there, writes its orders, and simulates.
        seconds = longest * chance.random() ** 2
        if walk(layout.root, ask_for(iterations), seconds):
            iterations += 1
            continue
        n_killed += 1
        before, place = place, describe(layout)
        # On a machine where it does not come on between two kills it is given longer.
        longest = 1.5 * longest if place == before else _LONGEST_S
        print(f"kill {n_killed} after {seconds:.2f} s: {place}", flush=True)
    while not walk(layout.root, ask_for(iterations), None):
        pass
    summary = read_record(Summary, layout.summary)
    assert summary.stop_reason == "max_iterations", summary
    assert summary.n_failed_tasks == 0, summary
    assert verify_run(layout).problems == []
    check_run(layout.root, every=1)
    counts = check_invariants(layout.root)
    print(f"survived {n_killed} kills: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    # Imported once, before the forks: each would take seconds.
    import entk_app.tasks.analyse
    import entk_app.tasks.simulate
    import entk_app.tasks.train  # noqa: F401

    main()
