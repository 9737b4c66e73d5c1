"""Pilots and tasks -> usage: where the cores and GPUs of a campaign went. Pure; reads no file.

The whole of a pilot is its cores (GPUs) times its life, from the first to the last event of its bootstrapper. A sweep
over time cuts it into parts: start-up, tasks by kind and outcome, RADICAL-Pilot's overhead around tasks, idle, and
shutdown. Each part is summed on its own, so that their sum can be held against the whole. Everything outside a
pilot's life is cut off.

Times are unix times in seconds. Core-hours count what RADICAL-Pilot calls cores: hardware threads where a resource
has ``smt`` above 1.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from pydantic import Field

from entk_app.records import FrameRef, Record, SegmentRecord

TaskState = Literal["done", "failed", "purged", "running", "waiting"]
PilotState = Literal["ended", "cut off", "running", "never started"]
Device = Literal["cores", "gpus"]

#: The order of kinds in tables and figures.
KINDS = ("simulate", "train", "analyse", "other")

#: Whose devices are counted: tasks of a kind and state that run, or None for slots that are held and not used.
_Key = tuple[str, str] | None

_HOUR_S = 3600.0
_N_BINS = 120


class Request(Record):
    """What was asked of the resource for one pilot; None where no file says."""

    nodes: int | None = None
    cores: int | None = None
    gpus: int | None = None
    walltime_min: float | None = None

    def hours(self, device: Device) -> float | None:
        """Core-hours or GPU-hours that were reserved: devices times walltime."""
        count = self.cores if device == "cores" else self.gpus
        return None if count is None or self.walltime_min is None else count * self.walltime_min / 60.0


@dataclass(frozen=True)
class Pilot:
    """One pilot as its files show it.

    Attributes
    ----------
    number : int
        From 1, in the order of their starts.
    nodes, cores, gpus : int
        What it held.
    submitted, active, shutdown : float or None
        When it was asked for, could run its first task, and could run no more.
    start, end : float
        First and last moment of its life.
    """

    number: int
    uid: str
    session: str
    resource: str
    request: Request
    nodes: int
    cores: int
    gpus: int
    start: float
    end: float
    submitted: float | None = None
    active: float | None = None
    shutdown: float | None = None
    state: PilotState = "ended"

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.start)

    def capacity(self, device: Device) -> int:
        return self.cores if device == "cores" else self.gpus

    def clip(self, unix: float) -> float:
        return min(max(unix, self.start), max(self.start, self.end))


@dataclass(frozen=True)
class Task:
    """One task on one pilot.

    Attributes
    ----------
    submitted : float or None
        By EnTK.
    scheduled, released : float or None
        Its slot was held from then until then.
    started, stopped : float or None
        Its process ran from then until then. ``stopped`` is None while it runs, and where it was cut off.
    recorded_s : float or None
        How long it worked by its own clock, from its record.
    """

    pilot: int
    uid: str
    name: str
    kind: str
    stage: str
    iteration: int | None = None
    simulation: int | None = None
    segment: int | None = None
    latent_dim: int | None = None
    cores: float = 1.0
    gpus: float = 0.0
    node: str | None = None
    core_ids: tuple[int, ...] = ()
    gpu_ids: tuple[int, ...] = ()
    submitted: float | None = None
    scheduled: float | None = None
    started: float | None = None
    stopped: float | None = None
    released: float | None = None
    exit_code: int | None = None
    published: bool = False
    recorded_s: float | None = None
    state: TaskState = "waiting"

    def amount(self, device: Device) -> float:
        return self.cores if device == "cores" else self.gpus

    def running(self, pilot: Pilot) -> tuple[float, float] | None:
        """When its process ran, within the pilot's life."""
        if self.started is None:
            return None
        return _ordered(pilot, self.started, pilot.end if self.stopped is None else self.stopped)

    def holding(self, pilot: Pilot) -> tuple[float, float] | None:
        """When its slot was not free for others: the run and what RADICAL-Pilot takes before and after it."""
        run = self.running(pilot)
        if self.scheduled is None:
            return run
        begin, end = _ordered(pilot, self.scheduled, pilot.end if self.released is None else self.released)
        return (min(begin, run[0]), max(end, run[1])) if run else (begin, end)

    def seconds(self, pilot: Pilot) -> float:
        run = self.running(pilot)
        return run[1] - run[0] if run else 0.0


class Parts(Record):
    """Core-hours (or GPU-hours) of a pilot and the parts that they were spent on.

    ``in_use`` sums ``use``, which is by task kind and outcome. ``whole`` equals ``start_up + in_use + overhead + idle
    + shutdown``. ``unrecorded`` is of what is in use: processes that start and end, outside their tasks' own clocks.
    ``oversubscribed`` is what tasks held beyond the pilot's devices; it is in no other part.
    """

    whole: float = 0.0
    start_up: float = 0.0
    in_use: float = 0.0
    overhead: float = 0.0
    idle: float = 0.0
    shutdown: float = 0.0
    unrecorded: float = 0.0
    oversubscribed: float = 0.0
    use: dict[str, dict[str, float]] = Field(default_factory=dict)

    @property
    def accounted(self) -> float:
        """The sum of the parts."""
        return self.start_up + self.in_use + self.overhead + self.idle + self.shutdown

    def of_kind(self, kind: str) -> float:
        return sum(self.use.get(kind, {}).values())

    def of_state(self, state: str) -> float:
        return sum(states.get(state, 0.0) for states in self.use.values())

    def __add__(self, other: Parts) -> Parts:
        kinds = _in_order({**self.use, **other.use})
        use = {kind: _add(self.use.get(kind, {}), other.use.get(kind, {})) for kind in kinds}
        names = ("whole", "start_up", "in_use", "overhead", "idle", "shutdown", "unrecorded", "oversubscribed")
        return Parts(use=use, **{name: getattr(self, name) + getattr(other, name) for name in names})


class Gaps(Record):
    """Time between stages, from the last task's end to the first task's start of the next, in seconds."""

    n: int
    median_s: float | None
    longest_s: float | None
    total_s: float


class Load(Record):
    """Devices in use, averaged over the time until the next load."""

    unix: float
    cores: float
    gpus: float


class StageAccount(Record):
    """One stage of the campaign on one pilot."""

    pilot: int
    name: str
    kind: str
    iteration: int | None
    n_tasks: int
    unix_start: float
    unix_end: float
    core_hours: float
    gpu_hours: float


class PilotAccount(Record):
    """One pilot: what was asked for, what it held, and what that was used for."""

    number: int
    uid: str
    session: str
    resource: str
    state: PilotState
    requested: Request
    requested_core_hours: float | None
    requested_gpu_hours: float | None
    nodes: int
    cores: int
    gpus: int
    unix_submitted: float | None
    unix_start: float
    unix_active: float | None
    unix_shutdown: float | None
    unix_end: float
    seconds: float
    node_hours: float
    seconds_queued: float | None
    seconds_to_active: float | None
    seconds_to_first_task: float | None
    n_tasks: int
    core_hours: Parts
    gpu_hours: Parts
    gaps: Gaps
    utilisation: tuple[Load, ...]


class Cost(Record):
    """What the pilots had consumed when the segment with the campaign's lowest RMSD ended."""

    rmsd_angstrom: float
    frame: FrameRef
    unix: float
    core_hours: float
    gpu_hours: float
    ns: float


class CampaignAccount(Record):
    """All pilots of a campaign, and their totals."""

    unix: float
    running: bool
    pilots: tuple[PilotAccount, ...]
    stages: tuple[StageAccount, ...]
    n_tasks: dict[str, int]
    requested_core_hours: float | None
    requested_gpu_hours: float | None
    node_hours: float
    core_hours: Parts
    gpu_hours: Parts
    seconds_to_first_task: float | None
    gaps: Gaps
    ns: float
    ns_per_core_hour: float | None
    ns_per_gpu_hour: float | None
    ns_per_core_hour_simulating: float | None
    ns_per_gpu_hour_simulating: float | None
    lowest_rmsd: Cost | None


@dataclass(frozen=True)
class Usage:
    """What was measured of a campaign: the input of :func:`account`."""

    pilots: tuple[Pilot, ...]
    tasks: tuple[Task, ...]
    segments: tuple[SegmentRecord, ...] = ()
    purged: frozenset[int] = frozenset()
    unix_began: float | None = None
    tasks_of: Mapping[int, tuple[Task, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_number: dict[int, list[Task]] = {pilot.number: [] for pilot in self.pilots}
        for task in self.tasks:
            by_number[task.pilot].append(task)
        object.__setattr__(self, "tasks_of", {number: tuple(tasks) for number, tasks in by_number.items()})


def judge_task(task: Task, pilot: Pilot, purged: frozenset[int]) -> Task:
    """The task with its state.

    Failed: it published no record, whatever its exit code: a task that a batch system ended after its work was done
    has not failed. Purged: it is a segment of a simulation
    that was ended for its lack of outliers; its work was done, for nothing.
    """
    if task.started is None:
        state: TaskState = "waiting"
    elif task.stopped is None and pilot.state == "running":
        state = "running"
    elif not task.published:
        state = "failed"
    elif task.simulation in purged:
        state = "purged"
    else:
        state = "done"
    return replace(task, state=state)


def compute_parts(pilot: Pilot, tasks: Sequence[Task], device: Device) -> Parts:
    """Cut a pilot's core-hours or GPU-hours into parts, by a sweep over time.

    Parameters
    ----------
    pilot : Pilot
    tasks : sequence of Task
        Of this pilot.
    device : {"cores", "gpus"}

    Notes
    -----
    In each interval between two events the pilot's devices are counted: those of running tasks, those that
    RADICAL-Pilot holds for a task that does not run yet or any more, and the free ones, which are start-up, idle or
    shutdown by the phase that the pilot is in. Where tasks overlap by more than there is, running ones come first and
    the excess counts as ``oversubscribed``.
    """
    sums: dict[str, float] = defaultdict(float)
    use: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    capacity = pilot.capacity(device)
    for begin, end, running, held in sweep(pilot, tasks, device):
        hours = (end - begin) / _HOUR_S
        asked = sum(running.values())
        share = min(1.0, capacity / asked) if asked > 0 else 1.0
        used = asked * share
        overhead = min(held, capacity - used)
        for (kind, state), amount in running.items():
            use[kind][state] += amount * share * hours
        sums["overhead"] += overhead * hours
        sums[_phase(pilot, begin)] += (capacity - used - overhead) * hours
        sums["oversubscribed"] += (asked - used + held - overhead) * hours
    return Parts(
        whole=capacity * pilot.seconds / _HOUR_S,
        unrecorded=sum(
            task.amount(device) * max(0.0, task.seconds(pilot) - task.recorded_s) / _HOUR_S
            for task in tasks
            if task.recorded_s is not None
        ),
        in_use=sum(sum(states.values()) for states in use.values()),
        use={kind: dict(use[kind]) for kind in _in_order(use)},
        **sums,
    )


def sweep(
    pilot: Pilot, tasks: Iterable[Task], device: Device
) -> Iterator[tuple[float, float, dict[tuple[str, str], float], float]]:
    """The intervals of a pilot's life in which nothing changes.

    Yields
    ------
    begin, end : float
    running : dict
        Devices of running tasks by (kind, state).
    held : float
        Devices held for tasks that do not run.
    """
    changes: dict[float, list[tuple[_Key, float]]] = defaultdict(list)
    for task in tasks:
        amount, hold, run = task.amount(device), task.holding(pilot), task.running(pilot)
        if hold is None or amount <= 0:
            continue
        begin, end = run or (hold[1], hold[1])
        run_key: _Key = (task.kind, task.state)
        for key, since, until in ((None, hold[0], begin), (run_key, begin, end), (None, end, hold[1])):
            if until > since:
                changes[since].append((key, amount))
                changes[until].append((key, -amount))
    borders = {pilot.start, pilot.end, *changes}
    borders |= {pilot.clip(unix) for unix in (pilot.active, pilot.shutdown) if unix is not None}
    level: dict[_Key, float] = defaultdict(float)
    for begin, end in pairwise(sorted(border for border in borders if pilot.start <= border <= pilot.end)):
        for key, amount in changes.get(begin, ()):
            level[key] += amount
        # Fractions of a GPU may leave a rest of rounding.
        running = {key: amount for key, amount in level.items() if key is not None and amount > 1e-9}
        yield begin, end, running, max(0.0, level[None])


def account(usage: Usage, unix: float) -> CampaignAccount:
    """The account of a campaign.

    Parameters
    ----------
    usage : Usage
    unix : float
        Now.
    """
    pilots = tuple(_account_pilot(pilot, usage.tasks_of[pilot.number]) for pilot in usage.pilots)
    stages = tuple(stage for pilot in usage.pilots for stage in list_stages(pilot, usage.tasks_of[pilot.number]))
    cores = sum((pilot.core_hours for pilot in pilots), Parts())
    gpus = sum((pilot.gpu_hours for pilot in pilots), Parts())
    ns = sum(segment.time_ps for segment in usage.segments) / 1000.0
    first = min((task.started for task in usage.tasks if task.started is not None), default=None)
    return CampaignAccount(
        unix=unix,
        running=any(pilot.state == "running" for pilot in usage.pilots),
        pilots=pilots,
        stages=stages,
        n_tasks=dict(Counter(task.state for task in usage.tasks)),
        requested_core_hours=_total([pilot.requested_core_hours for pilot in pilots]),
        requested_gpu_hours=_total([pilot.requested_gpu_hours for pilot in pilots]),
        node_hours=sum(pilot.node_hours for pilot in pilots),
        core_hours=cores,
        gpu_hours=gpus,
        seconds_to_first_task=_difference(usage.unix_began, first),
        gaps=summarise_gaps([gap for pilot in usage.pilots for gap in _gaps(usage, pilot)]),
        ns=ns,
        ns_per_core_hour=_per(ns, cores.whole),
        ns_per_gpu_hour=_per(ns, gpus.whole),
        ns_per_core_hour_simulating=_per(ns, cores.of_kind("simulate")),
        ns_per_gpu_hour_simulating=_per(ns, gpus.of_kind("simulate")),
        lowest_rmsd=compute_cost(usage),
    )


def compute_cost(usage: Usage) -> Cost | None:
    """What the lowest RMSD had cost when its segment ended; None without a native structure or a segment."""
    known = [
        (s.min_rmsd_angstrom, s.unix_end, FrameRef(simulation=s.simulation, segment=s.segment, frame=s.min_rmsd_frame))
        for s in usage.segments
        if s.min_rmsd_angstrom is not None and s.min_rmsd_frame is not None
    ]
    if not known:
        return None
    rmsd, until, frame = min(known, key=lambda entry: entry[:2])
    return Cost(
        rmsd_angstrom=rmsd,
        frame=frame,
        unix=until,
        core_hours=sum(p.cores * (p.clip(until) - p.start) for p in usage.pilots) / _HOUR_S,
        gpu_hours=sum(p.gpus * (p.clip(until) - p.start) for p in usage.pilots) / _HOUR_S,
        ns=sum(s.time_ps for s in usage.segments if s.unix_end <= until) / 1000.0,
    )


def list_stages(pilot: Pilot, tasks: Iterable[Task]) -> list[StageAccount]:
    """The stages whose tasks have started, in the order of their first task."""
    members: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        if task.started is not None:
            members[task.stage].append(task)
    stages = []
    for name, group in members.items():
        runs = [run for run in (task.running(pilot) for task in group) if run]
        stages.append(
            StageAccount(
                pilot=pilot.number,
                name=name,
                kind=group[0].kind,
                iteration=group[0].iteration,
                n_tasks=len(group),
                unix_start=min(begin for begin, _ in runs),
                unix_end=max(end for _, end in runs),
                core_hours=sum(task.cores * task.seconds(pilot) for task in group) / _HOUR_S,
                gpu_hours=sum(task.gpus * task.seconds(pilot) for task in group) / _HOUR_S,
            )
        )
    return sorted(stages, key=lambda stage: stage.unix_start)


def compute_gaps(stages: Sequence[StageAccount]) -> list[float]:
    """Seconds between the last end so far and each next stage's start; 0 where stages overlap."""
    gaps, last = [], None
    for stage in stages:
        if last is not None:
            gaps.append(max(0.0, stage.unix_start - last))
        last = stage.unix_end if last is None else max(last, stage.unix_end)
    return gaps


def summarise_gaps(gaps: Sequence[float]) -> Gaps:
    return Gaps(
        n=len(gaps),
        median_s=statistics.median(gaps) if gaps else None,
        longest_s=max(gaps, default=None),
        total_s=sum(gaps),
    )


def compute_utilisation(pilot: Pilot, tasks: Sequence[Task], n_bins: int = _N_BINS) -> tuple[Load, ...]:
    """Cores and GPUs in use over time, in bins of equal length; they average to what is in use over the whole life."""
    if pilot.seconds <= 0:
        return ()
    width = pilot.seconds / n_bins
    filled = {device: _fill_bins(pilot, tasks, device, n_bins) for device in ("cores", "gpus")}
    return tuple(
        Load(unix=pilot.start + i * width, cores=filled["cores"][i] / width, gpus=filled["gpus"][i] / width)
        for i in range(n_bins)
    )


def _fill_bins(pilot: Pilot, tasks: Sequence[Task], device: Device, n_bins: int) -> list[float]:
    """Device-seconds in use by bin."""
    width, bins = pilot.seconds / n_bins, [0.0] * n_bins
    for begin, end, running, _ in sweep(pilot, tasks, device):
        used = min(float(pilot.capacity(device)), sum(running.values()))
        first = int((begin - pilot.start) / width)
        last = min(n_bins - 1, int((end - pilot.start) / width))
        for i in range(first, last + 1) if used else ():
            left, right = pilot.start + i * width, pilot.start + (i + 1) * width
            bins[i] += used * max(0.0, min(end, right) - max(begin, left))
    return bins


def _account_pilot(pilot: Pilot, tasks: Sequence[Task]) -> PilotAccount:
    first = min((task.started for task in tasks if task.started is not None), default=None)
    has_started = pilot.state != "never started"
    return PilotAccount(
        number=pilot.number,
        uid=pilot.uid,
        session=pilot.session,
        resource=pilot.resource,
        state=pilot.state,
        requested=pilot.request,
        requested_core_hours=pilot.request.hours("cores"),
        requested_gpu_hours=pilot.request.hours("gpus"),
        nodes=pilot.nodes,
        cores=pilot.cores,
        gpus=pilot.gpus,
        unix_submitted=pilot.submitted,
        unix_start=pilot.start,
        unix_active=pilot.active,
        unix_shutdown=pilot.shutdown,
        unix_end=pilot.end,
        seconds=pilot.seconds,
        node_hours=pilot.nodes * pilot.seconds / _HOUR_S,
        seconds_queued=_difference(pilot.submitted, pilot.start) if has_started else None,
        seconds_to_active=_difference(pilot.start, pilot.active),
        seconds_to_first_task=_difference(pilot.start, first),
        n_tasks=len(tasks),
        core_hours=compute_parts(pilot, tasks, "cores"),
        gpu_hours=compute_parts(pilot, tasks, "gpus"),
        gaps=summarise_gaps(compute_gaps(list_stages(pilot, tasks))),
        utilisation=compute_utilisation(pilot, tasks),
    )


def _gaps(usage: Usage, pilot: Pilot) -> list[float]:
    return compute_gaps(list_stages(pilot, usage.tasks_of[pilot.number]))


def _phase(pilot: Pilot, unix: float) -> str:
    """What a free device is at this time: of a pilot that starts up, waits for tasks or shuts down."""
    if pilot.shutdown is not None and unix >= pilot.clip(pilot.shutdown):
        return "shutdown"
    if pilot.active is None or unix < pilot.clip(pilot.active):
        return "start_up"
    return "idle"


def _ordered(pilot: Pilot, begin: float, end: float) -> tuple[float, float]:
    begin = pilot.clip(begin)
    return begin, max(begin, pilot.clip(end))


def _in_order(kinds: Iterable[str]) -> list[str]:
    return sorted(kinds, key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))


def _add(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {key: left.get(key, 0.0) + right.get(key, 0.0) for key in {**left, **right}}


def _difference(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


def _total(hours: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in hours if value is not None]
    return sum(known) if len(known) == len(hours) else None


def _per(amount: float, hours: float) -> float | None:
    return amount / hours if hours > 0 else None
