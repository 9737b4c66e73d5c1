"""The campaign as data: which stages run next. It knows neither EnTK nor how a task is run.

A campaign is a chain of stages. After each, :meth:`Campaign.advance` reads what its tasks published, decides by
the pure rules of :mod:`entk_app.steering`, records the decision, writes the orders of the next tasks and
returns their stage. EnTK (:mod:`entk_app.workflow`) and the in-process runner walk the same chain, or the several
chains of :mod:`entk_app.concurrent`, by :meth:`Campaign.begin` and :meth:`Campaign.follow`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from entk_app import steering
from entk_app.errors import RecordError, RunFolderError
from entk_app.integrity import (
    DamagedError,
    read_segment,
)
from entk_app.layout import (
    RunLayout,
    analyse_task_name,
    failure_of,
    simulate_task_name,
    train_task_name,
)
from entk_app.machine import Machine
from entk_app.records import (
    AnalyseTask,
    AnalysisRecord,
    Deadline,
    Decision,
    FrameRef,
    ModelRecord,
    ModelRef,
    PilotRecord,
    SegmentKey,
    SegmentRecord,
    SimulateTask,
    SimulationRecord,
    Summary,
    SystemRecord,
    TaskFailure,
    TrainTask,
    append_record,
    read_lines,
    read_record,
    read_whole_lines,
    write_record,
)
from entk_app.results import Results
from entk_app.retraining import explain_training
from entk_app.settings import Settings
from entk_app.steering import History, SimulationHistory

logger = logging.getLogger(__name__)

StageKind = Literal["simulate", "train", "analyse"]

#: Less than this share of a segment that is measured in minutes is not worth another task.
_REST = 0.02

#: Files read at a time when a campaign is taken up again.
_READERS = 4


@dataclass(frozen=True)
class TaskSpec:
    """One process to run: ``python -m entk_app.tasks kind RUN order`` on so many cores and GPUs."""

    kind: StageKind
    name: str
    order: Path
    cores: int
    gpus: float

    @property
    def output(self) -> Path:
        """The folder or file that the task publishes; of a simulation the first of maybe several."""
        stem = self.order.name.removesuffix(".task.json")
        return self.order.with_name(f"{stem}.json" if self.kind == "analyse" else stem)


@dataclass(frozen=True)
class StageSpec:
    """Tasks that run at the same time; a row of the campaign."""

    kind: StageKind
    name: str
    tasks: tuple[TaskSpec, ...]


@dataclass(frozen=True)
class Snapshot:
    """Where the campaign is, for the progress line."""

    iteration: int
    stage: str
    n_frames: int
    min_rmsd_angstrom: float | None
    n_alive: int
    n_purged: int
    n_restarts: int
    seconds: float


@dataclass
class Campaign:
    """A campaign in a run folder.

    Parameters
    ----------
    layout : RunLayout
    settings : Settings
    machine : Machine
    on_decision : callable
        Told of every decision once it is on disk.
    find_deadline : callable
        Asked, when tasks have failed, whether the pilot's time is over: a batch system that ends a job kills tasks
        and refuses new ones, which is no failure of theirs.
    """

    layout: RunLayout
    settings: Settings
    machine: Machine
    on_decision: Callable[[Decision], None] = lambda decision: None
    find_deadline: Callable[[], Deadline | None] = lambda: None
    decisions: list[Decision] = field(default_factory=list)
    stage: StageSpec | None = None
    n_failed_tasks: int = 0
    last_failure: str | None = None
    last_failed_task: str | None = None
    has_begun: bool = False
    _in_a_row: dict[str, int] = field(default_factory=dict)
    _n_analyses: int = 0
    _began: float = field(default_factory=time.time)
    _seconds_before: float = 0.0
    _n_before: int = 0
    _deadline: Deadline | None = None
    _stage_began: float = 0.0
    _durations: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.results = Results(self.layout, self.settings.train.latent_dims)

    @property
    def iteration(self) -> int:
        return self.decisions[-1].iteration if self.decisions else 1

    @property
    def is_over(self) -> bool:
        """Whether the pilot's time is over: what did not finish was cut off."""
        return self._deadline is not None and time.time() >= self._deadline.end_by_unix

    @property
    def _going(self) -> Decision | None:
        """The decision that the present stage follows from: the last that did not end a pilot's campaign."""
        return next((decision for decision in reversed(self.decisions) if decision.next != "stop"), None)

    @property
    def final_decision(self) -> Decision | None:
        """The end of the campaign on this pilot; those of earlier pilots do not count."""
        taken = self.decisions[self._n_before :]
        return taken[-1] if taken and taken[-1].next == "stop" else None

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """What is running."""
        return () if self.stage is None else (self.stage,)

    def begin(self) -> tuple[StageSpec, ...]:
        """The first stages of this pilot, each the first of a chain: of a new campaign, or of one that was left.

        Returns
        -------
        tuple of StageSpec
            One here; none where a rule ends the campaign at once.
        """
        stage = self.resume() if self.layout.decisions.exists() else self.start()
        return () if stage is None else (stage,)

    def follow(self, ended: StageSpec) -> tuple[StageSpec, ...]:
        """Take in a stage that has ended and return those that begin now: never more at a time than in the beginning.

        None of several chains is over before :attr:`final_decision` is there.
        """
        following = self.advance()
        return () if following is None else (following,)

    def start(self) -> StageSpec:
        """Take the first decision and return the first stage."""
        self.has_begun = True
        stage = self._apply(steering.decide_start(self.settings, self.machine.slots))
        if stage is None:
            raise RunFolderError("the campaign ended before it began")
        return stage

    def resume(self) -> StageSpec | None:
        """Take up what an earlier pilot left: its decisions as they were, its results as they are on disk.

        The stage that was cut off goes on with the tasks that have not published anything.

        Returns
        -------
        StageSpec or None
            None where a rule ends the campaign at once.

        Raises
        ------
        RecordError
            The decisions or the records of the run folder cannot be read.
        """
        going = self._reread()
        if going is None:
            return self.start()
        stop = steering.find_stop(self._history(()), self.settings)
        if stop is not None:
            # Folded, or its simulated time is reached: no pilot is needed to know that.
            return self._apply(stop)
        return self._skip_finished(self._build(going))

    def _reread(self) -> Decision | None:
        """Take in what is on disk; returns the last decision with something to do, None where there is none."""
        self.decisions = read_whole_lines(Decision, self.layout.decisions)
        self._n_before = self.results.n_decisions = len(self.decisions)
        pilots = list(read_lines(PilotRecord, self.layout.pilots))
        self._seconds_before = sum(max(0.0, (p.unix_end or p.unix_submitted) - p.unix_submitted) for p in pilots)
        self.n_failed_tasks = self.decisions[-1].n_failed_tasks if self.decisions else 0
        for decision in self.decisions:
            self.results.replay(decision.actions)
            self._write_simulations(decision)
        if self._going is not None:
            self.results.read_all()
            self.has_begun = True
        return self._going

    def _skip_finished(self, stage: StageSpec) -> StageSpec | None:
        """The stage without the tasks whose result is there; the one after where none is left."""
        self._enter(stage)
        following: StageSpec | None = stage
        while following is not None:
            left = tuple(task for task in following.tasks if not self._is_done(task))
            if left:
                return self._enter(replace(following, tasks=left))
            # Nothing of it failed: what stands in for it is complete.
            following = self.advance()
        return None

    def note_pilot_active(self) -> None:
        """The stage begins now: waiting in a queue and starting the pilot took no time of its own."""
        self._stage_began = time.time()

    def limit_time(self, deadline: Deadline) -> None:
        """Tell the campaign and, through the run folder, its tasks when this pilot's time is over."""
        self._deadline = deadline
        write_record(self.layout.deadline, deadline)

    def advance(self) -> StageSpec | None:
        """Take in the stage that has ended and return the next one; None when the campaign is over."""
        if self.stage is None:
            return None
        self._durations[self.stage.kind] = time.time() - self._stage_began
        if not all(self._is_done(task) for task in self.stage.tasks):
            deadline = self.find_deadline()
            if deadline is not None:
                self.limit_time(deadline)
        if self.stage.kind == "analyse":
            return self._after_analysis(self._collect_analysis(self.stage.tasks[0].name))
        if self._going is not None and self._going.next == "simulate":
            self._collect_segments()
            history = self._history(self._what_learns())
            return self._apply(steering.decide_after_simulate(history, self.settings, self.machine.slots))
        return self._after_training()

    def _what_learns(self) -> tuple[StageKind, ...]:
        """Kinds of the stages that follow simulations, up to the next."""
        if self.settings.is_control:
            return ("simulate",)
        return ("analyse",) if self._explain_training() is None else ("train", "analyse")

    def _after_training(self) -> StageSpec | None:
        if self._trains:
            self._collect_models()
        if self._going is not None and self._going.next == "simulate+learn":
            self._collect_segments()
        stop = self._find_giving_up() or steering.find_stop(self._history(("analyse",)), self.settings)
        if stop is not None:
            return self._apply(stop)
        if self.results.models or not self.settings.learns:
            return self._enter(self._build_analyse())
        return self._after_analysis(None)

    @property
    def _trains(self) -> bool:
        """Whether models train in the present iteration, as the decision that its learning began with says."""
        has_to = steering.asks_for_training(self.decisions, self.iteration)
        if has_to is None:
            # Taken up in another coupling than it was left in.
            has_to = self._explain_training() is not None
        return self.settings.learns and (has_to or not self.results.models)

    def _find_giving_up(self) -> Decision | None:
        """The end of a campaign whose learning fails again and again."""
        for what, count in self._in_a_row.items():
            if count >= self.settings.faults.give_up_after:
                reason = f"{what} failed {count} times in a row (faults.give_up_after); the last: {self.last_failure}"
                return steering.decide_stop(self._history(()), "failed", reason)
        return None

    def end(self, stop_reason: str, message: str) -> None:
        """Record an end that no rule decided: an interrupt or a failure. What its tasks finished is taken in.

        Nothing is recorded of a campaign that has not begun, or was not taken up, on this pilot.
        """
        if not self.has_begun:
            return
        self._collect_at_the_end()
        if self.final_decision is None:
            history = self._history(())
            self._record(
                Decision(
                    index=len(self.decisions),
                    iteration=self.iteration,
                    next="stop",
                    reason=message,
                    stop_reason=stop_reason,
                    n_frames=history.n_frames,
                    min_rmsd_angstrom=history.min_rmsd_angstrom,
                )
            )
        self.stage = None

    def snapshot(self) -> Snapshot:
        history = self._history(())
        actions = [action for decision in self.decisions for action in decision.actions]
        return Snapshot(
            iteration=self.iteration,
            stage="+".join(sorted({stage.kind for stage in self.stages})) or "end",
            n_frames=history.n_frames,
            min_rmsd_angstrom=history.min_rmsd_angstrom,
            n_alive=len(history.alive),
            n_purged=sum(action.kind == "purge" for action in actions),
            n_restarts=sum(action.kind == "restart" for action in actions),
            seconds=self._seconds_before + time.time() - self._began,
        )

    def summarise(self) -> Summary:
        """The campaign as a row of the paper's table 1; written to ``summary.json`` too."""
        history, shot = self._history(()), self.snapshot()
        system = read_record(SystemRecord, self.layout.system_record)
        run = [s for s in history.simulations if s.segments]
        past = [s for s in run if s.n_frames >= self.settings.steering.min_frames]
        best, final = history.best, self.final_decision
        scored = history.find_best_score(self.settings.steering.goal)
        summary = Summary(
            system=system.name,
            model=system.model,
            n_simulations=len(run),
            total_time_us=round(history.time_us, 9),
            shortest_us=min((round(s.time_ps * 1e-6, 9) for s in past), default=None),
            longest_us=max((round(s.time_ps * 1e-6, 9) for s in run), default=None),
            n_iterations=self.machine.slots.count_iterations(self.iteration),
            n_frames=history.n_frames,
            n_outliers=self.results.n_outliers,
            n_purged=shot.n_purged,
            n_restarts=shot.n_restarts,
            n_failed_tasks=self.n_failed_tasks,
            min_rmsd_angstrom=history.min_rmsd_angstrom,
            min_rmsd_frame=None
            if best is None or best.min_rmsd_frame is None
            else FrameRef(simulation=best.simulation, segment=best.segment, frame=best.min_rmsd_frame),
            score=self.settings.steering.score_name if self.settings.steering.has_score else None,
            best_score=None if scored is None else scored.value,
            best_score_frame=None if scored is None else scored.frame,
            friction_per_ps=self.settings.simulate.friction_per_ps,
            temperature_k=self.settings.simulate.temperature_k,
            seed=self.settings.seed,
            stop_reason=(final.stop_reason or "unknown") if final else "running",
            message=final.reason if final else "",
            seconds=shot.seconds,
            platforms=tuple(sorted({segment.platform for segment in history.segments})),
        )
        write_record(self.layout.summary, summary)
        return summary

    # What the tasks published.

    def _collect_segments(self, at_the_end: bool = False) -> None:
        """Take in what the simulations of the present stage published; who published nothing has failed."""
        going = self._going
        for before in self.results.alive:
            number = before.simulation
            simulation = self.results.take_segments(number)
            answered = simulation.segments and simulation.segments[-1].ended_by != "save"
            if going is not None and answered and simulation.segments[-1].decision == going.index:
                self.results.simulations[number] = replace(simulation, failures=0, failure="")
                continue
            order = self.layout.segment(number, before.next_segment).task
            if at_the_end or self.is_over or not order.exists():
                # Cut off rather than failed, or never asked.
                continue
            self._count_failure(simulation, order)

    def _collect_at_the_end(self) -> None:
        if self.stage is not None and any(task.kind == "simulate" for task in self.stage.tasks):
            self._collect_segments(at_the_end=True)

    def _count_failure(self, simulation: SimulationHistory, order: Path) -> None:
        """Count the task of a simulation as failed, unless something that it read is to blame."""
        number = simulation.simulation
        failure = self._note_failure(self._name_of(order), f"simulation {number}", order)
        if failure.kind == "damaged":
            return
        self.results.simulations[number] = replace(
            self.results.simulations[number], failures=simulation.failures + 1, failure=failure.reason
        )
        self.results.set_partial_aside(number, failure.reason)

    def _note_failure(self, name: str, what: str, order: Path) -> TaskFailure:
        """Count a task that published nothing as failed, and see to what it found damaged."""
        try:
            failure = read_record(TaskFailure, failure_of(order))
        except RecordError:
            reason = "it ended without a result and without a word (killed, or never started)"
            failure = TaskFailure(kind="error", reason=reason, unix=time.time())
        self.n_failed_tasks += 1
        self.last_failure, self.last_failed_task = failure.reason, name
        logger.warning("%s failed: %s", what, failure.reason)
        if failure.damaged is not None:
            damaged = self.layout.root / failure.damaged
            if damaged.exists() and damaged != self.layout.root:
                self.results.set_aside(damaged, failure.reason)
        return failure

    def _collect_models(self) -> None:
        """Take the iteration's models in; the last good one of a size that failed goes on serving."""
        for latent_dim in self.settings.train.latent_dims:
            what = f"training of latent size {latent_dim}"
            if self.results.take_model(self.iteration, latent_dim):
                self._in_a_row[what] = 0
            elif self.is_over:
                logger.info("%s was cut off", what)
            else:
                order = self.layout.model(self.iteration, latent_dim).task
                self._note_failure(train_task_name(self.iteration, latent_dim), what, order)
                self._in_a_row[what] = self._in_a_row.get(what, 0) + 1

    def _collect_analysis(self, task: str) -> AnalysisRecord | None:
        analysis, what = self.results.take_analysis(self.iteration), "the analysis"
        if analysis is not None:
            self._in_a_row[what] = 0
        elif not self.is_over:
            order = self.layout.analysis_task(self.iteration)
            self._note_failure(task, f"analysis of iteration {self.iteration}", order)
            self._in_a_row[what] = self._in_a_row.get(what, 0) + 1
        return analysis

    def _after_analysis(self, analysis: AnalysisRecord | None) -> StageSpec | None:
        if analysis is None and not self.is_over:
            stop = self._find_giving_up()
            if stop is not None:
                return self._apply(stop)
            was_tried = self.stage is not None and self.stage.kind == "analyse"
            if was_tried and self._n_analyses == 1 and self.results.models:
                return self._enter(self._build_analyse(attempt=2))
        # In a split, simulations and the next training are one stage.
        trains_beside = self.machine.slots.is_split and self._explain_training() is not None
        following: tuple[StageKind, ...] = ("train",) if trains_beside else ("simulate",)
        return self._apply(
            steering.decide_after_analysis(self._history(following), analysis, self.settings, self.machine.slots)
        )

    def _is_done(self, task: TaskSpec) -> bool:
        """Whether a task has published all that it was asked for."""
        if task.kind != "simulate":
            return task.output.exists()
        order = read_record(SimulateTask, task.order)
        rest = _Rest(order.n_frames, order.minutes)
        for number in self.layout.segment_numbers(order.simulation):
            if number < order.segment:
                continue
            try:
                rest = rest.after(read_segment(self.layout.segment(order.simulation, number)))
            except DamagedError:
                return False
        return rest.is_done

    # Decisions.

    def _history(self, following: tuple[str, ...]) -> History:
        # Copied at once: the progress line asks from another thread.
        simulations = tuple(self.results.simulations.values())
        origins = [s.origin for s in simulations]
        return History(
            iteration=self.iteration,
            simulations=simulations,
            n_decisions=len(self.decisions),
            used=frozenset(origin.key for origin in origins if origin is not None),
            seconds_left=float("inf") if self._deadline is None else self._deadline.end_by_unix - time.time(),
            seconds_needed=sum(self._durations.get(kind, self._shortest(kind)) for kind in following),
            limit="walltime" if self._deadline is None else self._deadline.limit,
            training=self._explain_training(),
        )

    def _explain_training(self) -> str | None:
        n_frames = sum(s.n_frames for s in self.results.simulations.values())
        return explain_training(self.results.models, self.results.newest, n_frames, self.settings)

    def _shortest(self, kind: str) -> float:
        """Seconds that a stage which this pilot has not run yet takes at least, as far as the settings say."""
        simulates = kind == "simulate" or (kind == "train" and self.machine.slots.is_split)
        return 60.0 * (self.settings.simulate.segment_minutes or 0.0) if simulates else 0.0

    def _apply(self, decision: Decision) -> StageSpec | None:
        self._take(decision)
        if decision.next == "stop":
            self.stage = None
            return None
        return self._enter(self._build(decision))

    def _take(self, decision: Decision) -> None:
        self._record(decision)
        self.results.replay(decision.actions)
        self._write_simulations(decision)

    def _write_simulations(self, decision: Decision) -> None:
        """The records of the simulations that a decision starts, where they are not there yet."""
        for action in decision.actions:
            if action.kind not in ("start", "restart"):
                continue
            path = self.layout.simulation_record(action.simulation)
            record = SimulationRecord(
                simulation=action.simulation,
                iteration=decision.iteration,
                origin=action.origin,
                origin_rmsd_angstrom=action.rmsd_angstrom,
                seed=self._seed(action.simulation),
            )
            try:
                is_there = read_record(SimulationRecord, path) == record
            except RecordError:
                is_there = False
            if not is_there:
                write_record(path, record)

    def _record(self, decision: Decision) -> None:
        decision = decision.model_copy(update={"unix": time.time(), "n_failed_tasks": self.n_failed_tasks})
        append_record(self.layout.decisions, decision)
        self.decisions.append(decision)
        self.results.n_decisions = len(self.decisions)
        try:
            self.on_decision(decision)
        except (Exception, SystemExit):
            # Nobody reads what is printed any more (rich exits on a closed pipe): no reason to end a campaign.
            logger.warning("the decision could not be shown", exc_info=True)
            self.on_decision = _show_nothing

    def _enter(self, stage: StageSpec) -> StageSpec:
        self.stage, self._stage_began = stage, time.time()
        return stage

    # Orders.

    def _build(self, decision: Decision) -> StageSpec:
        """The stage that a decision asks for; orders of its tasks are written, results that are there left alone."""
        iteration = decision.iteration
        if decision.next == "simulate":
            name = f"simulate.{iteration:04d}.{decision.index:04d}"
            return StageSpec("simulate", name, self._order_segments(decision))
        trainings = self._order_trainings(decision) if self._trains else ()
        if decision.next == "simulate+learn":
            kind: StageKind = "train" if trainings else "simulate"
            return StageSpec(kind, f"{kind}.{iteration:04d}", (*self._order_segments(decision), *trainings))
        return StageSpec("train", f"train.{iteration:04d}", trainings) if trainings else self._build_analyse()

    def _order_segments(self, decision: Decision) -> tuple[TaskSpec, ...]:
        tasks = []
        for place, simulation in enumerate(self.results.alive):
            # Of a campaign that is taken up again some of it was simulated before.
            rest = self._whole.after(*(s for s in simulation.segments if s.decision == decision.index))
            if not rest.is_done:
                tasks.append(self._order_segment(simulation, decision, rest, self.machine.simulation_cores(place)))
        return tuple(tasks)

    @property
    def _whole(self) -> _Rest:
        return _Rest(self.settings.frames_per_segment, self.settings.simulate.segment_minutes)

    def _order_segment(self, simulation: SimulationHistory, decision: Decision, rest: _Rest, cores: int) -> TaskSpec:
        segment = simulation.next_segment
        order = self.layout.segment(simulation.simulation, segment).task
        failure_of(order).unlink(missing_ok=True)
        write_record(
            order,
            SimulateTask(
                simulation=simulation.simulation,
                segment=segment,
                iteration=decision.iteration,
                decision=decision.index,
                # A segment that failed is tried again with other random numbers.
                seed=self._seed(simulation.simulation, segment, simulation.failures),
                origin=simulation.origin,
                previous=simulation.segments[-1].segment if simulation.segments else None,
                n_frames=rest.n_frames,
                minutes=rest.minutes,
                cores=cores,
                gpus=self.machine.gpus_per_task,
                allow_cpu=self.machine.allow_cpu,
            ),
        )
        return TaskSpec("simulate", self._name_of(order), order, cores, self.machine.gpus_per_simulation)

    def _name_of(self, order: Path) -> str:
        """Name of a simulate task; a second try of the same has another."""
        task = read_record(SimulateTask, order)
        failures = self.results.simulations[task.simulation].failures
        name = simulate_task_name(task.iteration, task.simulation, task.segment)
        return f"{name}.try{failures + 1}" if failures else name

    def _order_trainings(self, decision: Decision) -> tuple[TaskSpec, ...]:
        """Trainings on the frames from before the decision: the same for all models, also when some were cut off."""
        tasks, iteration = [], decision.iteration
        segments = self._choose_training_segments(decision)
        for place, latent_dim in enumerate(self.settings.train.latent_dims):
            order, cores = self.layout.model(iteration, latent_dim).task, self.machine.training_cores(place)
            previous, newest, rare = self._find_before(order, latent_dim)
            failure_of(order).unlink(missing_ok=True)
            write_record(
                order,
                TrainTask(
                    iteration=iteration,
                    latent_dim=latent_dim,
                    seed=self._seed(1 << 24, iteration, latent_dim),
                    segments=segments,
                    previous=previous,
                    newest=newest,
                    rare=rare,
                    encode_all=self.settings.analyse.models in ("all", latent_dim),
                    cores=cores,
                    gpus=self.machine.gpus_per_task,
                    allow_cpu=self.machine.allow_cpu,
                ),
            )
            name = train_task_name(iteration, latent_dim)
            tasks.append(TaskSpec("train", name, order, cores, self.machine.gpus_per_task))
        return tuple(tasks)

    def _find_before(
        self, order: Path, latent_dim: int
    ) -> tuple[ModelRef | None, ModelRef | None, tuple[FrameRef, ...]]:
        """The models and the outliers that a training follows; of one that was ordered before, as it was."""
        try:
            ordered = read_record(TrainTask, order)
        except RecordError:
            models, analysis = self.results.models, self.results.newest
            newest = max(models.values(), key=lambda model: (model.iteration, -model.latent_dim), default=None)
            rare = () if analysis is None else tuple(outlier.frame for outlier in analysis.outliers)
            return _refer_to(models.get(latent_dim)), _refer_to(newest), rare
        rare = tuple(frame for frame in ordered.rare if self.results.has(frame))
        return ordered.previous, ordered.newest, rare

    def _choose_training_segments(self, decision: Decision) -> tuple[SegmentKey, ...]:
        return self.results.list_segments(before=decision.index)

    def _build_analyse(self, attempt: int = 1) -> StageSpec:
        order = self.layout.analysis_task(self.iteration)
        failure_of(order).unlink(missing_ok=True)
        suffix = "" if attempt == 1 else f".try{attempt}"
        self._n_analyses = attempt
        models = [self.results.models[dim] for dim in self.settings.train.latent_dims if dim in self.results.models]
        history = self._history(())
        write_record(
            order,
            AnalyseTask(
                iteration=self.iteration,
                models=tuple(ModelRef(iteration=m.iteration, latent_dim=m.latent_dim) for m in models),
                segments=self.results.list_segments(),
                best=steering.select_best_frames(history.segments, self.settings),
                min_rmsd_angstrom=history.min_rmsd_angstrom,
                cores=self.machine.analysis_cores,
                gpus=self.machine.gpus_per_task,
                allow_cpu=self.machine.allow_cpu,
            ),
        )
        task = TaskSpec(
            "analyse",
            analyse_task_name(self.iteration) + suffix,
            order,
            self.machine.analysis_cores,
            self.machine.gpus_per_task,
        )
        return StageSpec("analyse", f"analyse.{self.iteration:04d}{suffix}", (task,))

    def _seed(self, *place: int) -> int:
        return int(np.random.SeedSequence([self.settings.seed, *place]).generate_state(1)[0] >> 1)


@dataclass(frozen=True)
class _Rest:
    """What is left to simulate of what a decision asks of one simulation: frames, or minutes of wall clock."""

    n_frames: int | None
    minutes: float | None

    @property
    def is_done(self) -> bool:
        return (self.n_frames is not None and self.n_frames <= 0) or (self.minutes is not None and self.minutes <= 0)

    def after(self, *segments: SegmentRecord) -> _Rest:
        """What is left once these are there."""
        rest = self
        for segment in segments:
            if rest.n_frames is not None:
                rest = replace(rest, n_frames=rest.n_frames - segment.n_frames)
            if rest.minutes is not None:
                left = rest.minutes - segment.seconds_md / 60.0
                over = segment.ended_by == "clock" or left < _REST * rest.minutes
                rest = replace(rest, minutes=0.0 if over else left)
        return rest


def _refer_to(model: ModelRecord | None) -> ModelRef | None:
    return None if model is None else ModelRef(iteration=model.iteration, latent_dim=model.latent_dim)


def _show_nothing(decision: Decision) -> None:
    """What a campaign tells of its decisions when nobody listens."""
