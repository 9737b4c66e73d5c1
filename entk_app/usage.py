"""The usage of a campaign: what its run folder tells of pilots, tasks and segments, whole, cut off or running."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from entk_app.accounting import Pilot, PilotState, Request, Task, Usage, judge_task
from entk_app.errors import RecordError, RunFolderError
from entk_app.layout import RunLayout, TaskName, parse_task_name
from entk_app.lock import read_lock
from entk_app.profiles import (
    Event,
    PilotFiles,
    TaskSandbox,
    as_float,
    as_list,
    find_pilots,
    find_task_sandboxes,
    read_exit_code,
    read_pilot_lines,
    read_stage_name,
    read_task_documents,
)
from entk_app.records import AnalysisRecord, Decision, ModelRecord, RunInfo, SegmentRecord, read_lines, read_record

logger = logging.getLogger(__name__)

#: A campaign on another host counts as running while its files change at least so often.
_SILENCE_S = 600.0


def read_usage(layout: RunLayout, now: float) -> Usage:
    """Read what a campaign used, whether it is running, ended or dead.

    Parameters
    ----------
    layout : RunLayout
    now : float
        Unix time up to which a running pilot is counted.

    Raises
    ------
    RunFolderError
        There is no such run folder, or no pilot has left a trace in it.
    """
    check_run_folder(layout)
    traces = sorted((_Trace.read(files) for files in find_pilots(layout)), key=lambda trace: trace.start)
    traces = [trace for trace in traces if trace.start > 0.0]
    if not traces:
        raise RunFolderError(
            f"no pilot has left a trace in {layout.radical}: the campaign has not started one yet, ran without a "
            "pilot, or keeps RADICAL's files elsewhere until it ends (a run folder with a space in its path)"
        )
    lines = read_pilot_lines(layout.pilots)
    sandboxes = find_task_sandboxes(layout)
    purged = find_purged(layout)
    pilots, tasks = [], []
    for number, trace in enumerate(traces, 1):
        is_last = number == len(traces)
        until = trace.stop or (float("inf") if is_last else max(trace.last, traces[number].start))
        living = trace.stop is None and is_last and is_living(layout, now)
        found = _read_tasks(layout, trace, number, sandboxes, until)
        pilot = _build_pilot(trace, number, lines.get((trace.files.session, trace.files.uid), {}), found, living, now)
        pilots.append(pilot)
        tasks += [judge_task(task, pilot, purged) for task in found]
    return Usage(tuple(pilots), tuple(tasks), tuple(read_segments(layout)), purged, _read_begin(layout))


def check_run_folder(layout: RunLayout) -> None:
    """Refuse what is no run folder.

    Raises
    ------
    RunFolderError
        With the path and what is missing.
    """
    if not layout.root.is_dir():
        raise RunFolderError(f"there is no run folder {layout.root}")
    if not layout.settings.is_file():
        raise RunFolderError(f"{layout.root} is not a run folder: it has no {layout.settings.name}")


def read_segments(layout: RunLayout) -> Iterator[SegmentRecord]:
    """Every finished segment."""
    for path in sorted(layout.simulations.glob("*/segment-*/segment.json")):
        try:
            if path.parent.suffix != ".partial":
                yield read_record(SegmentRecord, path)
        except RecordError:
            # Not whole: not a segment.
            continue


def find_purged(layout: RunLayout) -> frozenset[int]:
    """Simulations that a decision has purged; a line that was cut off decides nothing, nor does what follows it."""
    purged = set()
    try:
        for decision in read_lines(Decision, layout.decisions):
            purged |= {action.simulation for action in decision.actions if action.kind == "purge"}
    except RecordError as error:
        logger.warning("purged work is counted up to a line that cannot be read: %s", error)
    return frozenset(purged)


def is_living(layout: RunLayout, now: float) -> bool:
    """Whether the campaign's launcher is at work: by its process on this host, else by files that change."""
    try:
        lock = read_lock(layout.lock)
    except (OSError, RecordError):
        return False
    if lock is None:
        return False
    if lock.is_here:
        return lock.process.lives
    changing = [*layout.logs.glob("tasks*/*/*"), *layout.simulations.glob("*/*/progress.json"), layout.decisions]
    newest = max((path.stat().st_mtime for path in changing if path.exists()), default=0.0)
    return now - newest < _SILENCE_S


@dataclass(frozen=True)
class _Trace:
    """A pilot's profiles, read."""

    files: PilotFiles
    events: tuple[Event, ...]
    client_events: tuple[Event, ...]
    begun: float | None
    stop: float | None
    submitted: float | None

    @classmethod
    def read(cls, files: PilotFiles) -> _Trace:
        events, client = tuple(files.read_events()), tuple(files.read_client_events())
        return cls(
            files=files,
            events=events,
            client_events=client,
            begun=_first(event.unix for event in events if event.name == "bootstrap_0_start"),
            stop=_first(event.unix for event in events if event.name == "bootstrap_0_stop"),
            submitted=_first(
                event.unix for event in client if event.uid == files.uid and event.state == "PMGR_LAUNCHING_PENDING"
            ),
        )

    @property
    def start(self) -> float:
        """Of its life; of a pilot that never began, when it was asked for; 0 where nothing is known."""
        return self.begun or _first(event.unix for event in self.events) or self.submitted or 0.0

    @property
    def last(self) -> float:
        return max((event.unix for event in self.events), default=self.start)

    def find_active(self) -> float | None:
        """When the agent could take tasks."""
        uid = self.files.uid
        return _first(event.unix for event in self.events if (event.uid, event.state) == (uid, "PMGR_ACTIVE"))

    def find_shutdown(self) -> float | None:
        """When it was told to end, or ended by itself."""
        uid = self.files.uid
        for event in self.events:
            told = event.name == "cmd" and event.message.startswith("cancel_pilots") and uid in event.message
            ended = event.uid == uid and event.state in ("DONE", "CANCELED", "FAILED")
            if told or ended or event.name in ("agent_gone", "agent_final", "bootstrap_0_stop"):
                return event.unix
        return None


def _build_pilot(
    trace: _Trace, number: int, line: dict[str, Any], tasks: Iterable[Task], living: bool, now: float
) -> Pilot:
    files = trace.files
    config = files.read_json("agent_0.cfg")
    request = find_request(line, files.description, config)
    nodes, cores, gpus = find_shape(files, config, request)
    state, end = _find_end(trace, line, tasks, living, now)
    return Pilot(
        number=number,
        uid=files.uid,
        session=files.session,
        resource=str(line.get("resource") or files.description.get("resource") or config.get("resource") or "unknown"),
        request=request,
        nodes=nodes,
        cores=cores,
        gpus=gpus,
        start=trace.start,
        end=end,
        submitted=as_float(line.get("unix_submitted")) or trace.submitted,
        active=trace.find_active(),
        shutdown=trace.find_shutdown(),
        state=state,
    )


def _find_end(
    trace: _Trace, line: dict[str, Any], tasks: Iterable[Task], living: bool, now: float
) -> tuple[PilotState, float]:
    """How a pilot stands, and the last moment that is counted: of one that was killed, the last trace of life."""
    if trace.stop is not None:
        return "ended", trace.stop
    if trace.begun is None and not trace.events:
        return "never started", trace.start
    if living:
        return "running", max(now, trace.last)
    times = [time for task in tasks for time in (task.scheduled, task.started, task.stopped) if time is not None]
    # The launcher may have seen its end.
    return "cut off", max(trace.last, as_float(line.get("unix_end")) or 0.0, *times)


def find_request(line: dict[str, Any], description: dict[str, Any], config: dict[str, Any]) -> Request:
    """What was asked for: by the launcher's own line, else the pilot manager's description, else the agent's."""
    asked = description.get("description") or {}
    details = description.get("resource_details") or {}

    def first(*values: Any) -> Any:
        return next((value for value in values if value), None)

    cores = first(line.get("cores"), asked.get("cores"), config.get("cores"))
    gpus = [line.get("gpus"), asked.get("gpus"), config.get("gpus")]
    return Request(
        nodes=first(line.get("nodes"), asked.get("nodes"), details.get("requested_nodes"), config.get("nodes")),
        cores=cores,
        gpus=next((value for value in gpus if value is not None), None),
        walltime_min=first(line.get("walltime_min"), asked.get("runtime"), config.get("runtime")),
    )


def find_shape(files: PilotFiles, config: dict[str, Any], request: Request) -> tuple[int, int, int]:
    """Nodes, cores and GPUs that the pilot held, which are whole nodes: what it cost, if more than was asked for."""
    nodes = as_list((files.description.get("nodelist") or {}).get("nodes"))
    if not nodes:
        managers = files.read_json("*.reg.agent_0.json").get("rm") or {}
        nodes = [node for manager in managers.values() for node in as_list(manager.get("node_list"))]
    if nodes:
        return len(nodes), sum(len(n.get("cores", ())) for n in nodes), sum(len(n.get("gpus", ())) for n in nodes)
    number = int(config.get("nodes") or request.nodes or 1)

    def held(device: str, asked: int | None) -> int:
        a_node = config.get(f"{device}_per_node")
        # A resource file may leave the cores of a node to the batch system: 0.
        if a_node is None or (device == "cores" and not a_node):
            return int(asked or 0)
        return number * int(a_node)

    return number, held("cores", request.cores), held("gpus", request.gpus)


def _read_tasks(
    layout: RunLayout, trace: _Trace, number: int, sandboxes: dict[str, list[TaskSandbox]], until: float
) -> list[Task]:
    """The tasks that this pilot's agent has heard of."""
    known: dict[str, list[Event]] = defaultdict(list)
    for event in trace.events:
        if event.uid.startswith("task."):
            known[event.uid].append(event)
    asked: dict[str, list[float]] = defaultdict(list)
    for event in trace.client_events:
        if event.uid in known and event.state == "SCHEDULING":
            asked[event.uid].append(event.unix)
    documents = read_task_documents(trace.files.client)
    tasks = []
    for uid, events in sorted(known.items()):
        sandbox = _choose_sandbox(sandboxes.get(uid, []), trace, until)
        task = _describe_task(number, uid, sandbox, documents.get(uid, {}))
        task = _time_task(task, events, sandbox.events if sandbox else (), trace.start, until)
        before = [unix for unix in asked[uid] if task.scheduled is None or unix <= task.scheduled]
        task = replace(task, submitted=max(before, default=events[0].unix))
        tasks.append(_hold_against_record(layout, task, until))
    return tasks


def _choose_sandbox(candidates: list[TaskSandbox], trace: _Trace, until: float) -> TaskSandbox | None:
    """The one whose script is of this pilot; else the one whose profile has events of its time."""
    mine = (trace.files.session, trace.files.uid)
    for sandbox in candidates:
        if (sandbox.session, sandbox.pilot) == mine:
            return sandbox
    for sandbox in candidates:
        if any(trace.start <= event.unix <= until for event in sandbox.events):
            return sandbox
    return None


def _describe_task(number: int, uid: str, sandbox: TaskSandbox | None, document: dict[str, Any]) -> Task:
    """Who a task is and what it got; the task manager's document knows best, where the session was closed."""
    full = str(document.get("name") or "").split(",")
    name = full[1] if len(full) > 1 else sandbox.name if sandbox else uid
    parts = parse_task_name(name)
    slots = as_list(document.get("slots"))
    core_ids = tuple(int(core["index"]) for slot in slots for core in slot.get("cores", ()))
    gpu_ids = tuple(int(gpu["index"]) for slot in slots for gpu in slot.get("gpus", ()))
    gpus = sum(float(gpu.get("occupation", 1.0)) for slot in slots for gpu in slot.get("gpus", ()))
    stage = read_stage_name(document.get("name") or "") or (sandbox.stage if sandbox else None)
    return Task(
        pilot=number,
        uid=uid,
        name=name,
        kind=parts.kind,
        stage=stage or ".".join(name.split(".")[:2]),
        iteration=parts.iteration,
        simulation=parts.simulation,
        segment=parts.segment,
        latent_dim=parts.latent_dim,
        cores=float(len(core_ids)) or (sandbox.cores if sandbox else 1.0),
        gpus=gpus if slots else (sandbox.gpus if sandbox else 0.0),
        node=" ".join(dict.fromkeys(str(slot.get("node_name")) for slot in slots)) or None,
        core_ids=core_ids,
        gpu_ids=gpu_ids or (sandbox.gpu_ids if sandbox else ()),
        exit_code=read_exit_code(document),
    )


def _time_task(task: Task, agent: list[Event], own: Iterable[Event], start: float, until: float) -> Task:
    """Take the times of the task's attempt on this pilot."""

    def at(events: Iterable[Event], *names: str) -> float | None:
        return _first(event.unix for name in names for event in events if event.name == name)

    scheduled, released = at(agent, "schedule_ok"), at(agent, "unschedule_stop")
    since = start if scheduled is None else scheduled
    window = [event for event in own if since <= event.unix <= (until if released is None else released)]
    return replace(
        task,
        scheduled=scheduled,
        started=at(window, "rank_start", "exec_start"),
        stopped=at(window, "rank_stop", "exec_stop") or at(agent, "task_run_stop"),
        released=released,
    )


def _hold_against_record(layout: RunLayout, task: Task, until: float) -> Task:
    """Whether the task published its record; its clock stands in for an end that no profile has.

    A record from before or after the task, or after ``until``, is of another try.
    """
    if task.started is None:
        return task
    last = until if task.stopped is None else task.stopped
    times = _read_record_times(layout, parse_task_name(task.name), last)
    if times is None or times[1] < task.started or times[0] > last:
        return task
    began, ended = times
    return replace(task, published=True, stopped=task.stopped or ended, recorded_s=ended - began)


def _read_record_times(layout: RunLayout, name: TaskName, last: float) -> tuple[float, float] | None:
    """When a task's own clock began and ended, by what it had published at ``last``."""
    record: SegmentRecord | ModelRecord | AnalysisRecord
    try:
        if name.kind == "simulate" and name.simulation is not None and name.segment is not None:
            record = read_record(SegmentRecord, layout.segment(name.simulation, name.segment).record)
            return record.unix_start, max(_read_ends(layout, record, last), default=record.unix_end)
        elif name.kind == "train" and name.iteration is not None and name.latent_dim is not None:
            record = read_record(ModelRecord, layout.model(name.iteration, name.latent_dim).record)
        elif name.kind == "analyse" and name.iteration is not None:
            record = read_record(AnalysisRecord, layout.analysis(name.iteration))
        else:
            return None
    except RecordError:
        return None
    return record.unix_start, record.unix_end


def _read_ends(layout: RunLayout, first: SegmentRecord, last: float) -> Iterator[float]:
    """Ends of the segments that a task published one after the other, each time that it saved."""
    for number in layout.segment_numbers(first.simulation):
        if number < first.segment:
            continue
        record = read_record(SegmentRecord, layout.segment(first.simulation, number).record)
        if record.decision == first.decision and record.unix_start <= last:
            yield record.unix_end


def _read_begin(layout: RunLayout) -> float | None:
    try:
        return read_record(RunInfo, layout.run_info).unix
    except RecordError:
        return None


def _first(times: Iterable[float]) -> float | None:
    return next(iter(times), None)
