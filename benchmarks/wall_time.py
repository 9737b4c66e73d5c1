"""Where a campaign's wall time goes, activity by activity and stage by stage: ``make profile``.

``python benchmarks/wall_time.py [--preset villin-quick] [--set KEY=VALUE] [--run RUN] [--output FOLDER]`` runs a quick
campaign on a local pilot, or takes one that is there, and prints a table; figure and CSV go to FOLDER. What ran at the
same time shares that time equally, so that the parts add up to the whole.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from entk_app.accounting import Task, Usage
from entk_app.layout import RunLayout
from entk_app.records import AnalysisRecord, ModelRecord, SegmentRecord, read_record
from entk_app.usage import read_usage

ROOT = Path(__file__).resolve().parent.parent

#: Activities in the order of the table, with their colours.
COLOURS = {
    "start-up": "#BBBBBB", "interpreter, imports": "#F0E442", "MD set-up": "#56B4E9", "MD": "#0072B2",
    "writing": "#882255", "reading": "#999933", "training": "#E69F00", "encoding": "#D55E00", "neighbours": "#009E73",
    "end of a task": "#CC79A7", "EnTK, RADICAL-Pilot": "#666666", "shutdown": "#DDDDDD",
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """An activity from one moment to another, Unix times."""

    begin: float
    end: float
    activity: str
    stage: str
    lane: int = 0


def dissect(layout: RunLayout, usage: Usage) -> list[Piece]:
    """What every task did, piece by piece."""
    pieces: list[Piece] = []
    lanes: list[float] = []
    for task in sorted(usage.tasks, key=lambda task: task.started or 0.0):
        if task.started is None or task.stopped is None:
            continue
        lane = next((place for place, free in enumerate(lanes) if free <= task.started), len(lanes))
        lanes[lane:lane + 1] = [task.stopped]
        stage, reached = f"{task.kind}", task.started
        for seconds_to, activity in _activities(layout, usage, task):
            until = min(max(seconds_to, reached), task.stopped)
            pieces.append(Piece(reached, until, activity, stage, lane))
            reached = until
        pieces.append(Piece(reached, task.stopped, "end of a task", stage, lane))
    return [piece for piece in pieces if piece.end > piece.begin]


def _activities(layout: RunLayout, usage: Usage, task: Task) -> Iterator[tuple[float, str]]:
    """Until when a task did what, by its records."""
    if task.kind == "simulate":
        assert task.started is not None and task.stopped is not None
        own = [s for s in usage.segments if s.simulation == task.simulation]
        for place, record in enumerate(s for s in own if task.started <= s.unix_start < task.stopped):
            yield from _of_segment(record, is_first=place == 0)
    elif task.kind == "train" and task.iteration is not None and task.latent_dim is not None:
        record = read_record(ModelRecord, layout.model(task.iteration, task.latent_dim).record)
        yield record.unix_start, "interpreter, imports"
        yield record.unix_start + record.seconds_load, "reading"
        yield record.unix_start + record.seconds_load + record.seconds_train, "training"
        encoding = (record.inference_ms_per_frame or 0.0) * 1e-3 * (record.n_train_frames + record.n_held_out_frames)
        yield record.unix_end - encoding, "writing"
        yield record.unix_end, "encoding"
    elif task.kind == "analyse" and task.iteration is not None:
        found = read_record(AnalysisRecord, layout.analysis(task.iteration))
        yield found.unix_start, "interpreter, imports"
        yield found.unix_end - found.seconds_encode - found.seconds_outliers, "reading"
        yield found.unix_end - found.seconds_outliers, "encoding"
        yield found.unix_end, "neighbours"


def _of_segment(record: SegmentRecord, is_first: bool) -> Iterator[tuple[float, str]]:
    began, writing = record.unix_start, record.seconds_writing or 0.0
    if is_first:
        yield began, "interpreter, imports"
    yield began + record.seconds_setup, "MD set-up"
    # In truth frame by frame.
    yield began + record.seconds_setup + record.seconds_md - writing, "MD"
    yield record.unix_end, "writing"


def add_gaps(pieces: list[Piece], begin: float, end: float) -> list[Piece]:
    """And what the campaign did while no task ran."""
    gaps, reached = [], begin
    last = max(piece.end for piece in pieces)
    for piece in sorted(pieces, key=lambda piece: piece.begin):
        if piece.begin > reached:
            gaps.append(Piece(reached, piece.begin, "EnTK, RADICAL-Pilot" if reached > begin else "start-up", "none"))
        reached = max(reached, piece.end)
    return [*gaps, *pieces, Piece(last, max(last, end), "shutdown", "none")]


def share_time(pieces: list[Piece]) -> dict[tuple[str, str], float]:
    """Seconds of wall time by stage and activity: those that run at a time have equal parts of it."""
    events = sorted(
        [(piece.begin, 1, piece) for piece in pieces] + [(piece.end, 0, piece) for piece in pieces],
        key=lambda event: event[:2],
    )
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    running: list[Piece] = []
    reached = 0.0
    for unix, begins, piece in events:
        for one in running:
            seconds[one.stage, one.activity] += (unix - reached) / len(running)
        reached = unix
        running.append(piece) if begins else running.remove(piece)
    return dict(seconds)


def write(pieces: list[Piece], seconds: dict[tuple[str, str], float], folder: Path, title: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "wall_time.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("stage", "activity", "seconds"))
        writer.writerows((*key, f"{value:.3f}") for key, value in seconds.items())
    zero, n_lanes = min(piece.begin for piece in pieces), 1 + max(piece.lane for piece in pieces)
    figure = Figure(figsize=(10.0, 2.4 + 0.35 * n_lanes), layout="constrained")
    axes = figure.subplots()
    for piece in pieces:
        low, height = (-0.45, float(n_lanes)) if piece.stage == "none" else (piece.lane - 0.4, 0.8)
        axes.broken_barh(
            [(piece.begin - zero, piece.end - piece.begin)], (low, height), color=COLOURS[piece.activity], linewidth=0
        )
    axes.set(xlabel="time since the command (s)", ylabel="tasks at a time", title=title, ylim=(n_lanes - 0.5, -0.5))
    axes.set_yticks(range(n_lanes), [str(lane + 1) for lane in range(n_lanes)])
    used = [name for name in COLOURS if any(piece.activity == name for piece in pieces)]
    handles = [Patch(color=COLOURS[name], label=name) for name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    for suffix in ("svg", "png"):
        figure.savefig(folder / f"wall_time.{suffix}", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="villin-quick")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as app.py's")
    parser.add_argument("--run", type=Path, help="a run folder that is there; its command began when it was made")
    parser.add_argument("--output", type=Path, default=Path("profile"))
    options = parser.parse_args()
    began, ended, folder = None, None, options.run
    if folder is None:
        folder = options.output / time.strftime("run-%Y%m%d-%H%M%S")
        options.output.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "app.py"), "--preset", options.preset, "--run-dir", str(folder)]
        for assignment in options.set:
            command += ["--set", assignment]
        began = time.time()
        subprocess.run(command, check=True)
        ended = time.time()
    layout = RunLayout(folder.resolve())
    usage = read_usage(layout, time.time())
    tasks = dissect(layout, usage)
    pieces = add_gaps(
        tasks, began or usage.unix_began or usage.pilots[0].start, ended or max(pilot.end for pilot in usage.pilots)
    )
    seconds = share_time(pieces)
    whole = sum(seconds.values())
    stages = [stage for stage in ("none", "simulate", "train", "analyse") if any(key[0] == stage for key in seconds)]
    print(f"\n{options.preset if options.run is None else folder}: {whole:.1f} s, what ran at a time shares it\n")
    names = ["no task" if stage == "none" else stage for stage in stages]
    print(f"| | {' | '.join(names)} | all, s | % |\n|---|{'---|' * (len(stages) + 2)}")
    for activity in COLOURS:
        row = [seconds.get((stage, activity), 0.0) for stage in stages]
        if sum(row):
            cells = " | ".join(f"{value:.1f}" if value else "" for value in row)
            print(f"| {activity} | {cells} | {sum(row):.1f} | {100 * sum(row) / whole:.1f} |")
    totals = [sum(value for key, value in seconds.items() if key[0] == stage) for stage in stages]
    print(f"| all | {' | '.join(f'{value:.1f}' for value in totals)} | {whole:.1f} | 100.0 |")
    write(pieces, seconds, options.output, f"{layout.root.name}: where {whole:.0f} s went")
    print(f"\n{options.output / 'wall_time.svg'}, {options.output / 'wall_time.csv'}")


if __name__ == "__main__":
    main()
