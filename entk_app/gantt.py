"""The figure of an account: tasks on devices over utilisation in time. Only matplotlib, only when it draws."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entk_app.accounting import KINDS, Device, Pilot, Task, Usage, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette: distinct to colour-blind readers too.
COLOURS = {"simulate": "#0072B2", "train": "#E69F00", "analyse": "#009E73", "other": "#CC79A7"}
HATCHES = {"failed": "xxxx", "purged": "////"}
_HELD, _START_UP, _SHUTDOWN = "#555555", "#DDDDDD", "#C4C4C4"
_NO_PILOT: dict[str, Any] = {"facecolor": "white", "edgecolor": "#BBBBBB", "hatch": "..", "linewidth": 0.0}
_MANY_BARS = 3000


def lane_device(usage: Usage) -> Device:
    """Lanes are GPUs where a pilot has some, else cores."""
    return "gpus" if any(pilot.gpus for pilot in usage.pilots) else "cores"


def assign_lanes(pilot: Pilot, tasks: Sequence[Task], device: Device) -> dict[str, tuple[int, ...]]:
    """Lanes of each task that has started, by its uid: its devices where they are known, else by first fit.

    Lanes count devices through all nodes, in the order of the nodes' names.
    """
    started = sorted((t for t in tasks if t.started is not None and t.amount(device) > 0), key=lambda t: t.started or 0)
    nodes = sorted({task.node for task in started if task.node is not None})
    per_node = max(1, pilot.capacity(device) // max(1, pilot.nodes))
    lanes: dict[str, tuple[int, ...]] = {}
    taken: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for task in started:
        ids = task.core_ids if device == "cores" else task.gpu_ids
        offset = nodes.index(task.node) * per_node if task.node is not None and " " not in task.node else 0
        if ids:
            lanes[task.uid] = tuple(offset + i for i in ids)
            _take(taken, lanes[task.uid], task.running(pilot))
    for task in started:
        if task.uid not in lanes:
            lanes[task.uid] = _fit(taken, math.ceil(task.amount(device)), task.running(pilot))
            _take(taken, lanes[task.uid], task.running(pilot))
    return lanes


def divide_lanes(
    pilot: Pilot, tasks: Sequence[Task], lanes: Mapping[str, tuple[int, ...]], device: Device
) -> dict[str, tuple[int, int]]:
    """Of each task that holds a part of a lane only: which part, from 0, and of how many."""
    parts: dict[str, tuple[int, int]] = {}
    taken: dict[tuple[int, int], float] = {}
    for task in sorted(tasks, key=lambda t: t.started or 0.0):
        run = task.running(pilot)
        if run is None or task.uid not in lanes or not 0.0 < task.amount(device) < 1.0:
            continue
        lane, count = lanes[task.uid][0], round(1.0 / task.amount(device))
        free = (part for part in range(count) if taken.get((lane, part), 0.0) <= run[0])
        part = next(free, count - 1)
        taken[lane, part] = run[1]
        parts[task.uid] = part, count
    return parts


def _take(
    taken: dict[int, list[tuple[float, float]]], lanes: Iterable[int], run: tuple[float, float] | None
) -> None:
    for lane in lanes:
        taken[lane].append(run or (0.0, 0.0))


def _fit(
    taken: dict[int, list[tuple[float, float]]], count: int, run: tuple[float, float] | None
) -> tuple[int, ...]:
    begin, end = run or (0.0, 0.0)
    found: list[int] = []
    lane = 0
    while len(found) < count:
        if all(end <= since or begin >= until for since, until in taken.get(lane, ())):
            found.append(lane)
        lane += 1
    return tuple(found)


def draw_figure(usage: Usage, title: str) -> Figure:
    """The whole figure.

    Parameters
    ----------
    usage : Usage
        With at least one pilot.
    title : str
    """
    from matplotlib.figure import Figure

    device = lane_device(usage)
    offsets, n_lanes = _stack_pilots(usage.pilots, device)
    zero = min(pilot.start for pilot in usage.pilots)
    unit, seconds = choose_unit(max(pilot.end for pilot in usage.pilots) - zero)
    height = min(11.0, max(2.0, 0.6 + 0.24 * n_lanes))
    figure = Figure(figsize=(12.0, height + 3.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(height, 2.0))
    plot_tasks(usage, upper, device, offsets, n_lanes, zero, seconds)
    plot_utilisation(usage, lower, device, zero, seconds)
    lower.set_xlabel(f"time since the first pilot's start ({unit})")
    if len(usage.pilots) > 1:
        for ax in (upper, lower):
            ax.patch.set(**_NO_PILOT)
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=_legend(usage), loc="outside lower center", ncols=9, frameon=False, fontsize=9)
    return figure


def write_figure(usage: Usage, title: str, paths: Iterable[Path]) -> None:
    """Draw once and save in each format; a reader sees a whole file or none."""
    figure = draw_figure(usage, title)
    for path in paths:
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
        temporary.replace(path)


def choose_unit(seconds: float) -> tuple[str, float]:
    """A unit of time in which a duration is a readable number: its name and its seconds."""
    for name, size, limit in (("s", 1.0, 300.0), ("min", 60.0, 3 * 3600.0), ("h", 3600.0, 3 * 86400.0)):
        if seconds <= limit:
            return name, size
    return "days", 86400.0


def plot_tasks(
    usage: Usage, ax: Axes, device: Device, offsets: dict[int, int], n_lanes: int, zero: float, seconds: float
) -> Axes:
    """Tasks as bars on the lanes of their devices, coloured by kind, hatched where failed or purged."""
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    bars: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for pilot in usage.pilots:
        base = offsets[pilot.number]
        _shade(ax, pilot, (base - 0.5, base + pilot.capacity(device) - 0.5), zero, seconds)
        tasks = usage.tasks_of[pilot.number]
        lanes = assign_lanes(pilot, tasks, device)
        parts = divide_lanes(pilot, tasks, lanes, device)
        for task in tasks:
            run = task.running(pilot)
            for first, last in _ranges(lanes.get(task.uid, ())) if run else ():
                left, right = ((unix - zero) / seconds for unix in run or ())
                low, high = base + first - 0.42, base + last + 0.42
                part, count = parts.get(task.uid, (0, 1))
                low, high = low + part * (high - low) / count, low + (part + 1) * (high - low) / count
                mark: str = task.state if task.state in HATCHES else ""
                bars[task.kind, mark].append([(left, low), (right, low), (right, high), (left, high)])
    is_crowded = sum(map(len, bars.values())) > _MANY_BARS
    for (kind, mark), corners in bars.items():
        ax.add_collection(
            PolyCollection(
                corners,
                facecolors=COLOURS[kind],
                edgecolors="black" if mark else "white",
                linewidths=0.1 if is_crowded else 0.4,
                # Thousands of hatches take a minute to draw, and cannot be told from one another.
                hatch=HATCHES.get(mark) if len(corners) <= _MANY_BARS else None,
                rasterized=is_crowded,
            )
        )
    ax.set_ylim(n_lanes - 0.5, -0.5)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    ax.set_ylabel("GPU" if device == "gpus" else "core (hardware thread)")
    ax.set_xlim(0.0, max((pilot.end - zero) / seconds for pilot in usage.pilots) or 1.0)
    return ax


def plot_utilisation(usage: Usage, ax: Axes, device: Device, zero: float, seconds: float) -> Axes:
    """Share of the devices held by all pilots of the time that tasks use, stacked by kind, in percent."""
    for pilot in usage.pilots:
        _shade(ax, pilot, (0.0, 105.0), zero, seconds)
    steps = list_utilisation(usage, device)
    times = [(unix - zero) / seconds for unix, _ in steps]
    bottom = [0.0] * len(steps)
    for kind in (*KINDS, "held"):
        top = [low + shares.get(kind, 0.0) for low, (_, shares) in zip(bottom, steps, strict=True)]
        if top != bottom:
            ax.fill_between(times, bottom, top, step="post", color=COLOURS.get(kind, _HELD), linewidth=0.0)
        bottom = top
    ax.set_ylim(0.0, 105.0)
    ax.set_ylabel(f"{'GPUs' if device == 'gpus' else 'cores'} in use (%)")
    ax.grid(axis="y", color="#BBBBBB", linewidth=0.5)
    return ax


def list_utilisation(usage: Usage, device: Device) -> list[tuple[float, dict[str, float]]]:
    """Percent of the devices of all pilots alive, by task kind and "held", from each time until the next."""
    changes: dict[float, list[tuple[str, float]]] = defaultdict(list)
    for pilot in usage.pilots:
        capacity = float(pilot.capacity(device))
        for begin, end, running, held in sweep(pilot, usage.tasks_of[pilot.number], device):
            used = sum(running.values())
            share = min(1.0, capacity / used) if used else 1.0
            amounts = [(kind, amount * share) for (kind, _), amount in running.items()]
            amounts += [("held", min(held, capacity - used * share)), ("capacity", capacity)]
            changes[begin] += amounts
            changes[end] += [(name, -amount) for name, amount in amounts]
    level: dict[str, float] = defaultdict(float)
    steps = []
    for unix in sorted(changes):
        for name, amount in changes[unix]:
            level[name] += amount
        capacity = level["capacity"]
        shares = {name: 100.0 * amount / capacity for name, amount in level.items() if capacity > 1e-9}
        steps.append((unix, {name: max(0.0, share) for name, share in shares.items() if name != "capacity"}))
    return steps


def _shade(ax: Axes, pilot: Pilot, between: tuple[float, float], zero: float, seconds: float) -> None:
    """A pilot's life as a white frame, its start-up and shutdown as grey."""
    from matplotlib.patches import Rectangle

    low, high = between
    active = pilot.end if pilot.active is None else pilot.clip(pilot.active)
    phases = [(pilot.start, min(active, pilot.clip(pilot.shutdown or active)), _START_UP)]
    if pilot.shutdown is not None:
        phases.append((pilot.clip(pilot.shutdown), pilot.end, _SHUTDOWN))
    for begin, end, colour in phases:
        corner, width = ((begin - zero) / seconds, low), (end - begin) / seconds
        ax.add_patch(Rectangle(corner, width, high - low, zorder=0.5, facecolor=colour, linewidth=0.0))
    corner, width = ((pilot.start - zero) / seconds, low), pilot.seconds / seconds
    life = Rectangle(corner, width, high - low, zorder=0.4, facecolor="white", edgecolor="#888888", linewidth=0.6)
    ax.add_patch(life)


def _stack_pilots(pilots: Sequence[Pilot], device: Device) -> tuple[dict[int, int], int]:
    """The first lane of each pilot and the number of lanes: pilots that never live at one time share theirs."""
    offsets: dict[int, int] = {}
    n_lanes = 1
    for pilot in pilots:
        beside = [p for p in pilots if p.number in offsets and p.start < pilot.end and pilot.start < p.end]
        offsets[pilot.number] = max((offsets[p.number] + p.capacity(device) for p in beside), default=0)
        n_lanes = max(n_lanes, offsets[pilot.number] + pilot.capacity(device))
    return offsets, n_lanes


def _ranges(lanes: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring lanes as one bar."""
    ranges: list[tuple[int, int]] = []
    for lane in sorted(lanes):
        if ranges and lane == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], lane)
        else:
            ranges.append((lane, lane))
    return ranges


def _legend(usage: Usage) -> list[Any]:
    from matplotlib.patches import Patch

    kinds = [kind for kind in KINDS if any(task.kind == kind and task.started for task in usage.tasks)]
    states = [state for state in HATCHES if any(task.state == state for task in usage.tasks)]
    patches = [Patch(facecolor=COLOURS[kind], label=kind) for kind in kinds]
    patches += [Patch(facecolor="white", edgecolor="black", hatch=HATCHES[state], label=state) for state in states]
    patches.append(Patch(facecolor=_HELD, label="held by RADICAL-Pilot"))
    patches.append(Patch(facecolor=_START_UP, label="pilot starts"))
    if any(pilot.shutdown is not None for pilot in usage.pilots):
        patches.append(Patch(facecolor=_SHUTDOWN, label="pilot shuts down"))
    if len(usage.pilots) > 1:
        patches.append(Patch(label="no pilot", **_NO_PILOT))
    return patches
