"""Where a campaign stands: what a run folder says of it, in numbers. Reads records only, and writes nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from entk_app.launcher import describe_age
from entk_app.layout import RunLayout, analyse_task_name, simulate_task_name, train_task_name
from entk_app.records import Decision, FrameRef, ModelRecord, ModelRef, Record, SegmentRecord
from entk_app.run_folder import CUT_OFF
from entk_app.run_reader import RunReader, RunState
from entk_app.settings import Settings
from entk_app.steering import SimulationHistory, asks_for_training, find_best_score, find_last_outlier

State = Literal["starting", "running", "ending", "ended", "dead"]
Stage = Literal["simulate", "train", "simulate+train", "analyse", "simulate+analyse", "none"]

#: Iterations whose mean length the end is estimated from.
_RECENT = 5
#: Failed tasks that are named.
_MAX_FAILED = 20


class SlotStatus(Record):
    """A simulation that holds a slot, or held one at the end. Its frames and time count the segment in work."""

    simulation: int
    origin: FrameRef | None
    origin_rmsd_angstrom: float | None
    activity: Literal["simulates", "waits", "done", "idle"]
    task_frames: int
    task_frames_expected: int | None
    running_frames: int
    n_frames: int
    time_ns: float
    ns_per_day: float | None
    last_rmsd_angstrom: float | None
    min_rmsd_angstrom: float | None
    frames_since_outlier: int | None
    frames_to_purge: int | None


class ModelStatus(Record):
    """The newest model of a latent size, and what the last analysis found with it."""

    latent_dim: int
    iteration: int
    is_best: bool
    held_out_reconstruction: float
    held_out_loss: float
    epochs: int
    seconds_train: float
    eps: float | None
    n_outliers: int | None


class AnalysisStatus(Record):
    """The last analysis."""

    iteration: int
    n_frames: int
    n_outliers: int
    best_model: ModelRef | None


class IterationStatus(Record):
    """An iteration: its frames and their lowest RMSD, and both until its end."""

    iteration: int
    n_frames: int
    min_rmsd_angstrom: float | None
    n_frames_so_far: int
    min_rmsd_so_far_angstrom: float | None
    unix_end: float


class EndEstimate(Record):
    """When a limit would end the campaign."""

    limit: Literal["max_iterations", "max_time", "walltime", "budget"]
    unix: float


class FailedTask(Record):
    """A task whose stage is over and that published nothing; what it printed."""

    name: str
    logs: tuple[str, ...]


class StatusReport(Record):
    """A campaign at one moment, as ``entk-app status --json`` prints it: docs/status.md names every field."""

    version: Literal[1] = 1
    unix: float
    run: str
    system: str
    model: str
    n_residues: int | None
    n_atoms: int | None
    has_native: bool
    resource: str
    cores: int | None
    gpus: int | None
    n_pilots: int
    seed: int
    state: State
    activity: str
    stop_reason: str | None
    message: str
    can_resume: bool
    host: str | None
    pid: int | None
    last_sign_unix: float | None
    iteration: int
    n_iterations: int
    max_iterations: int
    stage: Stage
    stage_done: int
    stage_tasks: int
    stage_began_unix: float | None
    began_unix: float | None
    elapsed_s: float
    n_frames: int
    n_frames_running: int
    time_ns: float
    min_rmsd_angstrom: float | None
    min_rmsd_frame: FrameRef | None
    target_rmsd_angstrom: float | None
    score: str | None = None
    best_score: float | None = None
    best_score_frame: FrameRef | None = None
    target_score: float | None = None
    n_simulations: int
    n_purged: int
    n_restarts: int
    slots: tuple[SlotStatus, ...]
    models: tuple[ModelStatus, ...]
    analysis: AnalysisStatus | None
    iterations: tuple[IterationStatus, ...]
    ends: tuple[EndEstimate, ...]
    n_failed_tasks: int
    failed_tasks: tuple[FailedTask, ...]
    logs: str
    notes: tuple[str, ...]


def read_status(reader: RunReader, now: float | None = None) -> StatusReport:
    """Look at a run folder once.

    Raises
    ------
    RunFolderError
        There is no campaign in it.
    SettingsError
        Its settings cannot be read.
    """
    return describe_run(reader.read(time.time() if now is None else now), reader.layout)


def describe_run(run: RunState, layout: RunLayout) -> StatusReport:
    """What was found, as a report; ``layout`` says where logs lie."""
    state = find_state(run)
    stage = _find_stage(run)
    slots = tuple(_describe_slot(run, s, stage.kind, state) for s in run.simulations.values() if s.alive)
    pilot, system, last, best = (run.pilots or (None,))[-1], run.system, run.last, run.best
    n_running = sum(slot.running_frames for slot in slots)
    lowest = min((rmsd for rmsd in (
        best.min_rmsd_angstrom if best else None, *(slot.min_rmsd_angstrom for slot in slots)
    ) if rmsd is not None), default=None)  # fmt: skip
    is_whole = best is not None and best.min_rmsd_frame is not None and best.min_rmsd_angstrom == lowest
    steering = run.settings.steering
    scored = find_best_score(run.segments, steering.goal)
    actions = [action.kind for decision in run.decisions for action in decision.actions]
    iteration = run.going.iteration if run.going else 1
    logs = find_logs(run, layout)
    failed = _find_failed(run)
    is_over = state in ("ending", "ended") and last is not None
    return StatusReport(
        unix=run.now,
        run=str(layout.root),
        system=run.settings.system.name,
        model=run.settings.system.model,
        n_residues=system.n_residues if system else None,
        n_atoms=system.n_atoms if system else None,
        has_native=system is not None and system.has_native,
        resource=pilot.resource if pilot else run.settings.resource.label,
        cores=pilot.cores if pilot else None,
        gpus=pilot.gpus if pilot else None,
        n_pilots=len(run.pilots),
        seed=run.settings.seed,
        state=state,
        activity=_describe_activity(run, state, stage),
        stop_reason=last.stop_reason if is_over and last else None,
        message=_describe_end(run, state),
        can_resume=state == "dead" or (state == "ended" and last is not None and last.stop_reason in CUT_OFF),
        host=run.launcher.host,
        pid=run.launcher.pid,
        last_sign_unix=run.launcher.last_sign_unix,
        iteration=iteration,
        n_iterations=_count_iterations(run, iteration),
        max_iterations=run.settings.stop.max_iterations,
        stage=stage.kind,
        stage_done=stage.n_done,
        stage_tasks=stage.n_tasks,
        stage_began_unix=run.going.unix if run.going else None,
        began_unix=run.decisions[0].unix if run.decisions else None,
        elapsed_s=_measure_elapsed(run, state),
        n_frames=sum(segment.n_frames for segment in run.segments),
        n_frames_running=n_running,
        time_ns=1e-3 * (sum(s.time_ps for s in run.segments) + n_running * run.settings.simulate.report_interval_ps),
        min_rmsd_angstrom=lowest,
        min_rmsd_frame=FrameRef(simulation=best.simulation, segment=best.segment, frame=best.min_rmsd_frame)
        if is_whole and best is not None and best.min_rmsd_frame is not None
        else None,
        target_rmsd_angstrom=run.settings.stop.target_rmsd_angstrom,
        score=steering.score_name if steering.has_score else None,
        best_score=None if scored is None else scored.value,
        best_score_frame=None if scored is None else scored.frame,
        target_score=run.settings.stop.target_score,
        n_simulations=sum(bool(s.segments) or s.simulation in run.progress for s in run.simulations.values()),
        n_purged=actions.count("purge"),
        n_restarts=actions.count("restart"),
        slots=slots,
        models=_describe_models(run),
        analysis=None
        if run.analysis is None
        else AnalysisStatus(
            iteration=run.analysis.iteration,
            n_frames=run.analysis.n_frames,
            n_outliers=len(run.analysis.outliers),
            best_model=run.analysis.best_model,
        ),
        iterations=_describe_iterations(run.segments),
        ends=estimate_ends(run) if state == "running" else (),
        n_failed_tasks=run.summary.n_failed_tasks
        if run.summary and state == "ended"
        else max(len(failed), last.n_failed_tasks if last else 0),
        failed_tasks=tuple(
            FailedTask(name=name, logs=tuple(sorted(map(str, logs.glob(f"tasks*/{name}/*.err")))))
            for name in failed[-_MAX_FAILED:]
        ),
        logs=str(logs),
        notes=run.notes,
    )


def find_state(run: RunState) -> State:
    """Running, or how it came to rest.

    ``starting``: the launcher lives and no task can have begun yet. ``ending``: it lives, and the campaign is over or
    was asked to end. ``ended``: a last decision says why. ``dead``: the launcher went without a word.
    """
    launcher, last = run.launcher, run.last
    is_taken_up = last is not None and launcher.taken_unix is not None and launcher.taken_unix > last.unix
    if not launcher.is_alive:
        return "ended" if last is not None and last.next == "stop" else "dead"
    if run.is_stop_requested:
        return "ending"
    if last is None or (last.next == "stop" and is_taken_up):
        return "starting"
    if last.next == "stop":
        # From another host a launcher that has just gone still seems to live.
        return "ended" if run.pilots and run.pilots[-1].unix_end is not None else "ending"
    if run.pilots and run.pilots[-1].unix_active is None:
        return "starting"
    if is_taken_up and run.pilots and run.pilots[-1].unix_submitted < (launcher.taken_unix or 0.0):
        return "starting"
    return "running"


@dataclass(frozen=True)
class _StageCount:
    kind: Stage
    n_done: int = 0
    n_tasks: int = 0


def _find_stage(run: RunState) -> _StageCount:
    """The stage that the last decision with something to do led to, and how many of its tasks have published."""
    going = run.going
    if going is None:
        return _StageCount("none")
    iteration = going.iteration
    trains = run.settings.learns and asks_for_training(run.decisions, iteration)
    wanted = set(run.settings.train.latent_dims) if trains else set()
    if run.settings.coupling == "concurrent":
        return _find_concurrent_stage(run, going, wanted)
    if going.next != "simulate" and iteration in run.to_analyse:
        return _StageCount("analyse", int(iteration in run.analysed), 1)
    alive = [simulation for simulation in run.simulations.values() if simulation.alive]
    n_simulated = sum(_is_done(simulation, going) for simulation in alive)
    if going.next == "simulate" or (not trains and going.next == "simulate+learn"):
        return _StageCount("simulate", n_simulated, len(alive))
    n_trained = len(run.trained.get(iteration, set()) & wanted)
    if going.next == "learn":
        return _StageCount("train", n_trained, len(wanted))
    return _StageCount("simulate+train", n_simulated + n_trained, len(alive) + len(wanted))


def _find_concurrent_stage(run: RunState, going: Decision, wanted: set[int]) -> _StageCount:
    """Learning's step: simulations go on all the time. Before it, how many simulations have given frames."""
    if going.next == "simulate":
        alive = [simulation for simulation in run.simulations.values() if simulation.alive]
        return _StageCount("simulate", sum(bool(simulation.segments) for simulation in alive), len(alive))
    if not wanted and going.iteration not in run.to_analyse:
        return _StageCount("simulate")
    if going.iteration in run.to_analyse:
        return _StageCount("simulate+analyse", int(going.iteration in run.analysed), 1)
    return _StageCount("simulate+train", len(run.trained.get(going.iteration, set()) & wanted), len(wanted))


def _is_done(simulation: SimulationHistory, going: Decision) -> bool:
    """Whether it published all that the decision asked of it: a segment that was only saved is followed by another."""
    last = simulation.segments[-1] if simulation.segments else None
    return last is not None and last.decision == going.index and last.ended_by != "save"


def _describe_activity(run: RunState, state: State, stage: _StageCount) -> str:
    """What it does just now, in words."""
    if state == "starting":
        pilot = run.pilots[-1] if run.pilots else None
        is_asked = pilot is not None and pilot.unix_end is None and pilot.unix_active is None
        if is_asked and pilot is not None and pilot.queued and pilot.unix_began is None:
            return "its pilot waits in the queue"
        return "the pilot starts" if is_asked else "the launcher starts"
    if state == "ending":
        return "its tasks save what they have, the pilot closes"
    if state != "running":
        return ""
    if run.settings.coupling == "concurrent" and stage.kind == "simulate":
        return "simulates" if run.analysed or run.settings.is_control else "simulates the initial frames"
    if stage.n_done == stage.n_tasks:
        return f"{stage.kind} is done, deciding"
    if stage.kind.endswith("analyse"):
        return "looks for outliers"
    return f"{stage.kind}, {stage.n_done} of {stage.n_tasks} done"


def _describe_end(run: RunState, state: State) -> str:
    """Why it ended, or what is known of a launcher that went."""
    if state in ("ending", "ended"):
        return run.last.reason if run.last is not None and run.last.next == "stop" else "it was asked to end"
    if state != "dead":
        return ""
    launcher = run.launcher
    who = "its launcher" if launcher.pid is None else f"its launcher (process {launcher.pid} on {launcher.host})"
    sign = launcher.last_sign_unix
    age = "" if sign is None else f", the last sign of it is {describe_age(run.now - sign)} old"
    return f"{who} is gone without a word{age}"


def _count_iterations(run: RunState, number: int) -> int:
    """As the campaign counts them: beside learning, the initial phase has a number of its own."""
    return max(1, number - any(decision.next == "simulate+learn" for decision in run.decisions))


def _measure_elapsed(run: RunState, state: State) -> float:
    """Seconds of all pilots together, waiting in the queue included; those of the decisions where there is none."""
    is_over = state in ("ended", "dead")
    ends = [decision.unix for decision in run.decisions[-1:]] + [s.unix_end for s in run.segments]
    until = max(ends, default=run.now) if is_over else run.now
    if not run.pilots:
        return max(0.0, until - run.decisions[0].unix) if run.decisions else 0.0
    *earlier, last = run.pilots
    seconds = sum(max(0.0, (pilot.unix_end or pilot.unix_submitted) - pilot.unix_submitted) for pilot in earlier)
    return seconds + max(0.0, (last.unix_end or until) - last.unix_submitted)


def find_logs(run: RunState, layout: RunLayout) -> Path:
    """Where the present pilot's tasks print: its scratch folder while it runs, if it has one, else the run folder."""
    if run.pilots and run.pilots[-1].unix_end is None and run.pilots[-1].radical:
        away = Path(run.pilots[-1].radical).parent / "logs"
        if away.is_dir():
            return away
    return layout.logs


# Simulations.


def _describe_slot(run: RunState, simulation: SimulationHistory, stage: Stage, state: State) -> SlotStatus:
    going, start, settings = run.going, run.starts[simulation.simulation], run.settings
    is_concurrent = settings.coupling == "concurrent"
    is_done = not is_concurrent and going is not None and _is_done(simulation, going)
    progress = None if is_done or state in ("ended", "dead") else run.progress.get(simulation.simulation)
    segments, running = simulation.segments, progress.n_frames if progress else 0
    saved = len(segments) - len(list(itertools.takewhile(lambda s: s.ended_by == "save", reversed(segments))))
    in_task = segments[saved:] if is_concurrent else [s for s in segments if going and s.decision == going.index]
    asked = [s.n_frames for s in in_task]
    activity: Literal["simulates", "waits", "done", "idle"] = "idle"
    if state in ("starting", "running", "ending") and stage.startswith("simulate"):
        activity = "done" if is_done else "simulates" if progress or asked else "waits"
    n_frames = simulation.n_frames + running
    lows = [s.min_rmsd_angstrom for s in segments] + ([progress.min_rmsd_angstrom] if progress else [])
    last_outlier = _find_last_outlier(run, simulation)
    return SlotStatus(
        simulation=simulation.simulation,
        origin=simulation.origin,
        origin_rmsd_angstrom=start.rmsd_angstrom,
        activity=activity,
        task_frames=sum(asked) + running,
        task_frames_expected=settings.frames_per_segment,
        running_frames=running,
        n_frames=n_frames,
        time_ns=1e-3 * (simulation.time_ps + running * settings.simulate.report_interval_ps),
        ns_per_day=progress.ns_per_day if progress else segments[-1].ns_per_day if segments else None,
        last_rmsd_angstrom=simulation.last_rmsd_angstrom,
        min_rmsd_angstrom=min((low for low in lows if low is not None), default=None),
        frames_since_outlier=None if last_outlier is None else n_frames - 1 - last_outlier,
        frames_to_purge=None if run.analysis is None else count_frames_to_purge(n_frames, last_outlier, settings),
    )


def _find_last_outlier(run: RunState, simulation: SimulationHistory) -> int | None:
    """Place of its newest outlier; not of one in a segment that was analysed and is lost since."""
    if run.analysis is None:
        return None
    whole = {(segment.simulation, segment.segment) for segment in simulation.segments}
    left = tuple(o for o in run.analysis.outliers if (o.frame.simulation, o.frame.segment) in whole)
    return find_last_outlier(simulation, run.analysis.model_copy(update={"outliers": left}))


def count_frames_to_purge(n_frames: int, last_outlier: int | None, settings: Settings) -> int:
    """Frames until :func:`entk_app.steering.explain_purge` would take a simulation that has no further outlier.

    Parameters
    ----------
    n_frames : int
        Frames that it has.
    last_outlier : int or None
        Place of its newest outlier, from 0.
    """
    steering = settings.steering
    due = steering.min_frames
    if last_outlier is not None:
        due = max(due, last_outlier + steering.window + 1)
    return max(0, due - n_frames)


# Learning.


def find_best_model(records: Sequence[ModelRecord]) -> ModelRecord | None:
    """As the analyse task chooses: of the newest iteration, the one that reconstructs held-out maps best."""
    newest = max((record.iteration for record in records), default=0)
    return min(
        (record for record in records if record.iteration == newest),
        key=lambda record: (record.held_out_reconstruction, record.latent_dim),
        default=None,
    )


def _describe_models(run: RunState) -> tuple[ModelStatus, ...]:
    best = find_best_model(list(run.models.values()))
    found = {} if run.analysis is None else {(m.model.iteration, m.model.latent_dim): m for m in run.analysis.models}
    rows = []
    for latent_dim, record in run.models.items():
        outliers = found.get((record.iteration, latent_dim))
        rows.append(
            ModelStatus(
                latent_dim=latent_dim,
                iteration=record.iteration,
                is_best=record is best,
                held_out_reconstruction=record.held_out_reconstruction,
                held_out_loss=record.held_out_loss,
                epochs=record.epochs,
                seconds_train=record.seconds_train,
                eps=outliers.eps if outliers else None,
                n_outliers=outliers.n_outliers if outliers else None,
            )
        )
    return tuple(rows)


# Time.


def _describe_iterations(segments: Sequence[SegmentRecord]) -> tuple[IterationStatus, ...]:
    by_iteration: dict[int, list[SegmentRecord]] = {}
    for segment in segments:
        by_iteration.setdefault(segment.iteration, []).append(segment)
    rows: list[IterationStatus] = []
    for number, own in sorted(by_iteration.items()):
        lowest = min((s.min_rmsd_angstrom for s in own if s.min_rmsd_angstrom is not None), default=None)
        so_far = [rows[-1].min_rmsd_so_far_angstrom] if rows else []
        n_frames = sum(segment.n_frames for segment in own)
        rows.append(
            IterationStatus(
                iteration=number,
                n_frames=n_frames,
                min_rmsd_angstrom=lowest,
                n_frames_so_far=n_frames + (rows[-1].n_frames_so_far if rows else 0),
                min_rmsd_so_far_angstrom=min((low for low in (*so_far, lowest) if low is not None), default=None),
                unix_end=max(segment.unix_end for segment in own),
            )
        )
    return tuple(rows)


@dataclass(frozen=True)
class _Lap:
    """A whole iteration that no change of pilots fell into."""

    seconds: float
    n_frames: int


def _find_laps(run: RunState) -> list[_Lap]:
    """The last iterations; not the first where there are others: its pilot started, its models had few frames."""
    begun: dict[int, Decision] = {}
    for decision in run.decisions:
        if decision.next != "stop":
            begun.setdefault(decision.iteration, decision)
    breaks = [pilot.unix_submitted for pilot in run.pilots]
    laps = {}
    for number, first in begun.items():
        following = begun.get(number + 1)
        if following is None or any(first.unix < moment <= following.unix for moment in breaks[number > 1 :]):
            continue
        laps[number] = _Lap(following.unix - first.unix, following.n_frames - first.n_frames)
    is_split = any(decision.next == "simulate+learn" for decision in run.decisions)
    if is_split or len(laps) > 1:
        laps.pop(1, None)
    return [laps[number] for number in sorted(laps)][-_RECENT:]


def estimate_ends(run: RunState) -> tuple[EndEstimate, ...]:
    """When each limit would end the campaign, the first to come first; what cannot be known is left out.

    ``max_iterations`` and ``max_time`` follow from the last iterations, ``walltime`` and ``budget`` stand in the run
    folder. Nobody knows when it folds.
    """
    ends, stop, going, laps = [], run.settings.stop, run.going, _find_laps(run)
    if run.deadline is not None:
        ends.append(EndEstimate(limit=run.deadline.limit, unix=run.deadline.end_by_unix))
    if going is not None and laps:
        seconds, n_frames = sum(lap.seconds for lap in laps), sum(lap.n_frames for lap in laps)
        mean = seconds / len(laps)
        began = next(d.unix for d in run.decisions if d.iteration == going.iteration and d.next != "stop")
        began = max([began, *(pilot.unix_active or pilot.unix_submitted for pilot in run.pilots[-1:])])
        left = stop.max_iterations - _count_iterations(run, going.iteration)
        ends.append(EndEstimate(limit="max_iterations", unix=max(run.now, began + mean) + left * mean))
        if stop.max_time_us is not None and n_frames > 0:
            ns_left = 1e3 * stop.max_time_us - 1e-3 * sum(segment.time_ps for segment in run.segments)
            ns_per_s = 1e-3 * n_frames * run.settings.simulate.report_interval_ps / seconds
            ends.append(EndEstimate(limit="max_time", unix=max(run.now, going.unix + ns_left / ns_per_s)))
    return tuple(sorted(ends, key=lambda end: end.unix))


# What failed.


def _find_failed(run: RunState) -> list[str]:
    """Names of the tasks whose stage is over and that published nothing, oldest first."""
    going, last = run.going, run.last
    failed: list[str] = []
    if run.settings.coupling == "concurrent":
        # A simulation that fails is tried again at once; the decisions count it.
        learned = {decision.iteration for decision in run.decisions if decision.next == "simulate+learn"}
        for iteration in sorted(learned):
            failed += _find_failed_learning(run, iteration, is_over=going is not None and iteration < going.iteration)
        return failed
    alive: set[int] = set()
    tries: dict[int, int] = {}
    published = {(s.simulation, s.decision): s.segment for s in run.segments if s.ended_by != "save"}
    last_saved = {(s.simulation, s.decision): s.segment for s in run.segments}
    counts = dict.fromkeys(run.simulations, 0)
    # What was cut off with its pilot has not failed.
    is_failed = last is not None and last.stop_reason == "failed"
    for decision in run.decisions:
        alive |= {action.simulation for action in decision.actions if action.kind in ("start", "restart")}
        alive -= {action.simulation for action in decision.actions if action.kind in ("purge", "end")}
        if decision.next == "stop":
            continue
        is_present = going is not None and decision.index == going.index
        if decision.next in ("simulate", "simulate+learn"):
            for number in sorted(alive):
                segment = published.get((number, decision.index))
                if segment is not None:
                    counts[number], tries[number] = segment + 1, 0
                elif not is_present or is_failed:
                    tries[number] = tries.get(number, 0) + 1
                    name = simulate_task_name(decision.iteration, number, counts[number])
                    failed.append(name if tries[number] == 1 else f"{name}.try{tries[number]}")
                    counts[number] = max(counts[number], last_saved.get((number, decision.index), -1) + 1)
        if decision.next != "simulate":
            failed += _find_failed_learning(run, decision.iteration, is_over=not is_present or is_failed)
    return failed


def _find_failed_learning(run: RunState, iteration: int, is_over: bool) -> Iterator[str]:
    trained = run.trained.get(iteration, set())
    if is_over or iteration in run.to_analyse:
        for latent_dim in sorted(run.to_train.get(iteration, set()) - trained):
            yield train_task_name(iteration, latent_dim)
    if is_over and iteration in run.to_analyse - run.analysed:
        yield analyse_task_name(iteration)
