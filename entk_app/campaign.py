"""The campaign as data: which stages run next. It knows neither EnTK nor how a task is run.

A campaign is a chain of stages. After each, :meth:`Campaign.advance` reads what its tasks published, decides by
the pure rules of :mod:`entk_app.steering`, records the decision, writes the orders of the next tasks and
returns their stage. EnTK (:mod:`entk_app.workflow`) and the in-process runner walk the same chain.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from entk_app import __version__, steering
from entk_app.errors import RecordError, RunFolderError
from entk_app.layout import RunLayout, analyse_task_name, simulate_task_name, train_task_name
from entk_app.records import (
    AnalyseTask,
    AnalysisRecord,
    Decision,
    FrameRef,
    ModelRecord,
    ModelRef,
    RunInfo,
    SegmentKey,
    SegmentRecord,
    SimulateTask,
    SimulationRecord,
    Summary,
    SystemRecord,
    TrainTask,
    append_record,
    read_record,
    write_record,
    write_text,
)
from entk_app.settings import Settings, dump_yaml
from entk_app.steering import History, SimulationHistory, Slots

logger = logging.getLogger(__name__)

StageKind = Literal["simulate", "train", "analyse"]

#: Packages whose versions are kept with a run.
_PACKAGES = (
    "radical.entk", "radical.pilot", "radical.utils", "openmm", "MDAnalysis", "tensorflow", "keras", "scikit-learn",
    "scipy", "numpy", "h5py", "pydantic",
)  # fmt: skip

#: Analyses or trainings that fail so often in a row end the campaign.
_MAX_LEARN_FAILURES = 2


@dataclass(frozen=True)
class TaskSpec:
    """One process to run: ``python -m entk_app.tasks kind RUN order`` on so many cores and GPUs."""

    kind: StageKind
    name: str
    order: Path
    cores: int
    gpus: int


@dataclass(frozen=True)
class StageSpec:
    """Tasks that run at the same time; a row of the campaign."""

    kind: StageKind
    name: str
    tasks: tuple[TaskSpec, ...]


@dataclass(frozen=True)
class Machine:
    """What the pilot has, and how it is divided among tasks."""

    cores: int
    gpus: int
    slots: Slots
    cores_per_slot: int
    node_cores: int

    @property
    def cores_per_training(self) -> int:
        """An equal share of the cores, or of those beside a GPU; never more than a node has."""
        share = self.cores // self.gpus if self.gpus else self.cores // self.slots.learn
        return min(max(1, share), self.node_cores)

    @property
    def cores_per_analysis(self) -> int:
        return min(self.cores, self.node_cores)

    @property
    def gpus_per_task(self) -> int:
        return 1 if self.gpus else 0


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
    """

    layout: RunLayout
    settings: Settings
    machine: Machine
    on_decision: Callable[[Decision], None] = lambda decision: None
    decisions: list[Decision] = field(default_factory=list)
    stage: StageSpec | None = None
    n_failed_tasks: int = 0
    _simulations: dict[int, SimulationHistory] = field(default_factory=dict)
    _models: dict[int, ModelRecord] = field(default_factory=dict)
    _outliers: set[tuple[int, int, int]] = field(default_factory=set)
    _learn_failures: int = 0
    _trained: bool = True
    _began: float = field(default_factory=time.time)
    _stage_began: float = 0.0
    _durations: dict[str, float] = field(default_factory=dict)

    @property
    def iteration(self) -> int:
        return self.decisions[-1].iteration if self.decisions else 1

    @property
    def final_decision(self) -> Decision | None:
        return self.decisions[-1] if self.decisions and self.decisions[-1].next == "stop" else None

    def start(self) -> StageSpec:
        """Take the first decision and return the first stage."""
        stage = self._apply(steering.decide_start(self.settings, self.machine.slots))
        if stage is None:
            raise RunFolderError("the campaign ended before it began")
        return stage

    def advance(self) -> StageSpec | None:
        """Take in the stage that has ended and return the next one; None when the campaign is over."""
        if self.stage is None:
            return None
        self._durations[self.stage.kind] = time.time() - self._stage_began
        if self.stage.kind == "simulate":
            self._collect_segments()
            return self._apply(
                steering.decide_after_simulate(self._history(("train", "analyse")), self.settings, self.machine.slots)
            )
        if self.stage.kind == "train":
            self._trained = self._collect_models() > 0
            if self._models:
                return self._enter(self._build_analyse())
            return self._after_analysis(None)
        return self._after_analysis(self._collect_analysis())

    def end(self, stop_reason: str, message: str) -> None:
        """Record an end that no rule decided: an interrupt or a failure. What its tasks finished is taken in."""
        if self.stage is not None and self.stage.kind == "simulate":
            self._collect_segments(at_the_end=True)
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
            stage=self.stage.kind if self.stage else "end",
            n_frames=history.n_frames,
            min_rmsd_angstrom=history.min_rmsd_angstrom,
            n_alive=len(history.alive),
            n_purged=sum(action.kind == "purge" for action in actions),
            n_restarts=sum(action.kind == "restart" for action in actions),
            seconds=time.time() - self._began,
        )

    def summarise(self) -> Summary:
        """The campaign as a row of the paper's table 1; written to ``summary.json`` too."""
        history, shot = self._history(()), self.snapshot()
        system = read_record(SystemRecord, self.layout.system_record)
        run = [s for s in history.simulations if s.segments]
        past = [s for s in run if s.n_frames >= self.settings.steering.min_frames]
        best, final = history.best, self.final_decision
        summary = Summary(
            system=system.name,
            model=system.model,
            n_simulations=len(run),
            total_time_us=round(history.time_us, 9),
            shortest_us=min((round(s.time_ps * 1e-6, 9) for s in past), default=None),
            longest_us=max((round(s.time_ps * 1e-6, 9) for s in run), default=None),
            n_iterations=self.iteration,
            n_frames=history.n_frames,
            n_outliers=len(self._outliers),
            n_purged=shot.n_purged,
            n_restarts=shot.n_restarts,
            n_failed_tasks=self.n_failed_tasks,
            min_rmsd_angstrom=history.min_rmsd_angstrom,
            min_rmsd_frame=None
            if best is None or best.min_rmsd_frame is None
            else FrameRef(simulation=best.simulation, segment=best.segment, frame=best.min_rmsd_frame),
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
        for simulation in [s for s in self._simulations.values() if s.alive]:
            number = len(simulation.segments)
            paths = self.layout.segment(simulation.simulation, number)
            try:
                record = read_record(SegmentRecord, paths.record)
            except RecordError as error:
                if at_the_end:
                    # Cut off rather than failed.
                    continue
                self.n_failed_tasks += 1
                logger.warning("simulation %d segment %d failed: %s", simulation.simulation, number, error)
                self._simulations[simulation.simulation] = replace(simulation, failures=simulation.failures + 1)
                continue
            self._simulations[simulation.simulation] = replace(
                simulation, segments=(*simulation.segments, record), failures=0
            )

    def _collect_models(self) -> int:
        """Take the iteration's models in; returns how many there are."""
        n_trained = 0
        for latent_dim in self.settings.train.latent_dims:
            try:
                self._models[latent_dim] = read_record(
                    ModelRecord, self.layout.model(self.iteration, latent_dim).record
                )
                n_trained += 1
            except RecordError as error:
                # The last good model of this size goes on serving.
                self.n_failed_tasks += 1
                logger.warning("training of latent size %d failed: %s", latent_dim, error)
        return n_trained

    def _collect_analysis(self) -> AnalysisRecord | None:
        try:
            analysis = read_record(AnalysisRecord, self.layout.analysis(self.iteration))
        except RecordError as error:
            self.n_failed_tasks += 1
            logger.warning("analysis of iteration %d failed: %s", self.iteration, error)
            return None
        self._outliers.update(outlier.frame.key for outlier in analysis.outliers)
        return analysis

    def _after_analysis(self, analysis: AnalysisRecord | None) -> StageSpec | None:
        self._learn_failures = 0 if analysis is not None and self._trained else self._learn_failures + 1
        if self._learn_failures >= _MAX_LEARN_FAILURES:
            self.end("failed", f"learning failed {self._learn_failures} times in a row; see {self.layout.logs}")
            return None
        return self._apply(
            steering.decide_after_analysis(self._history(("simulate",)), analysis, self.settings, self.machine.slots)
        )

    # Decisions.

    def _history(self, following: tuple[str, ...]) -> History:
        # Copied at once: the progress line asks from another thread.
        simulations = tuple(self._simulations.values())
        origins = [s.origin for s in simulations]
        return History(
            iteration=self.iteration,
            simulations=simulations,
            n_decisions=len(self.decisions),
            used=frozenset(origin.key for origin in origins if origin is not None),
            seconds_left=self._end_by - time.time(),
            seconds_needed=sum(self._durations.get(kind, 0.0) for kind in following),
        )

    def _apply(self, decision: Decision) -> StageSpec | None:
        self._record(decision)
        for action in decision.actions:
            if action.kind in ("start", "restart"):
                self._simulations[action.simulation] = SimulationHistory(action.simulation, action.origin)
                write_record(
                    self.layout.simulation_record(action.simulation),
                    SimulationRecord(
                        simulation=action.simulation,
                        iteration=decision.iteration,
                        origin=action.origin,
                        origin_rmsd_angstrom=action.rmsd_angstrom,
                        seed=self._seed(action.simulation),
                    ),
                )
            elif action.kind in ("purge", "end"):
                self._simulations[action.simulation] = replace(self._simulations[action.simulation], alive=False)
        if decision.next == "stop":
            self.stage = None
            return None
        return self._enter(self._build_simulate() if decision.next == "simulate" else self._build_train())

    def _record(self, decision: Decision) -> None:
        decision = decision.model_copy(update={"unix": time.time()})
        append_record(self.layout.decisions, decision)
        self.decisions.append(decision)
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

    @property
    def _end_by(self) -> float:
        """When tasks end in order, for the pilot to be closed within its walltime."""
        minutes = self.settings.resource.walltime_min
        return self._began + minutes * 60.0 - _closing_seconds(minutes)

    def _build_simulate(self) -> StageSpec:
        tasks = []
        for simulation in [s for s in self._simulations.values() if s.alive]:
            segment = len(simulation.segments)
            order = self.layout.segment(simulation.simulation, segment).task
            write_record(
                order,
                SimulateTask(
                    simulation=simulation.simulation,
                    segment=segment,
                    iteration=self.iteration,
                    # A segment that failed is tried again with other random numbers.
                    seed=self._seed(simulation.simulation, segment, simulation.failures),
                    origin=simulation.origin,
                    end_by_unix=self._end_by,
                    cores=self.machine.cores_per_slot,
                    gpus=self.machine.gpus_per_task,
                ),
            )
            name = simulate_task_name(self.iteration, simulation.simulation, segment)
            if simulation.failures:
                name += f".try{simulation.failures + 1}"
            tasks.append(TaskSpec("simulate", name, order, self.machine.cores_per_slot, self.machine.gpus_per_task))
        return StageSpec("simulate", f"simulate.{self.iteration:04d}.{len(self.decisions):04d}", tuple(tasks))

    def _build_train(self) -> StageSpec:
        tasks = []
        for latent_dim in self.settings.train.latent_dims:
            order = self.layout.model(self.iteration, latent_dim).task
            write_record(
                order,
                TrainTask(
                    iteration=self.iteration,
                    latent_dim=latent_dim,
                    seed=self._seed(1 << 24, self.iteration, latent_dim),
                    segments=self._segment_keys(),
                    end_by_unix=self._end_by,
                    encode_all=self.settings.analyse.models in ("all", latent_dim),
                    cores=self.machine.cores_per_training,
                    gpus=self.machine.gpus_per_task,
                ),
            )
            tasks.append(
                TaskSpec(
                    "train",
                    train_task_name(self.iteration, latent_dim),
                    order,
                    self.machine.cores_per_training,
                    self.machine.gpus_per_task,
                )
            )
        return StageSpec("train", f"train.{self.iteration:04d}", tuple(tasks))

    def _build_analyse(self) -> StageSpec:
        order = self.layout.analysis_task(self.iteration)
        models = [self._models[dim] for dim in self.settings.train.latent_dims if dim in self._models]
        write_record(
            order,
            AnalyseTask(
                iteration=self.iteration,
                models=tuple(ModelRef(iteration=m.iteration, latent_dim=m.latent_dim) for m in models),
                segments=self._segment_keys(),
                cores=self.machine.cores_per_analysis,
                gpus=self.machine.gpus_per_task,
            ),
        )
        task = TaskSpec(
            "analyse",
            analyse_task_name(self.iteration),
            order,
            self.machine.cores_per_analysis,
            self.machine.gpus_per_task,
        )
        return StageSpec("analyse", f"analyse.{self.iteration:04d}", (task,))

    def _segment_keys(self) -> tuple[SegmentKey, ...]:
        return tuple(
            SegmentKey(simulation=s.simulation, segment=segment.segment, n_frames=segment.n_frames)
            for s in self._simulations.values()
            for segment in s.segments
        )

    def _seed(self, *place: int) -> int:
        return int(np.random.SeedSequence([self.settings.seed, *place]).generate_state(1)[0] >> 1)


def create_run_folder(layout: RunLayout, settings: Settings, command: list[str]) -> None:
    """Make a new run folder that describes itself: settings as run, versions, seed, command.

    Raises
    ------
    RunFolderError
        It holds something already, or cannot be made.
    """
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        if any(layout.root.iterdir()):
            raise RunFolderError(
                f"the run folder {layout.root} is not empty: choose another with --run-dir, or remove it"
            )
        # Two launchers that found the same folder empty: the first to make this file has it.
        with layout.lock.open("x", encoding="utf-8") as stream:
            stream.write(f"{platform.node()} {os.getpid()}\n")
        write_text(layout.settings, dump_yaml(settings))
        write_record(
            layout.run_info,
            RunInfo(
                entk_app=__version__,
                python=platform.python_version(),
                executable=sys.executable,
                host=platform.node(),
                machine=f"{platform.machine()}, {os.cpu_count()} cores",
                packages={name: _version(name) for name in _PACKAGES},
                command=tuple(command),
                seed=settings.seed,
                unix=time.time(),
            ),
        )
    except FileExistsError as error:
        raise RunFolderError(f"the run folder {layout.root} is taken: {error.filename} exists already") from None
    except OSError as error:
        raise RunFolderError(f"cannot write the run folder {layout.root}: {error.strerror}") from None


def divide_machine(settings: Settings, cores: int, gpus: int, node_cores: int | None = None) -> Machine:
    """Divide a node's devices among tasks: one GPU a task where there are GPUs, else cores.

    Parameters
    ----------
    cores, gpus : int
        Of the whole pilot.
    node_cores : int or None
        Cores of one node, which a single task cannot exceed; None: all.

    Raises
    ------
    RunFolderError
        A simulation asks for more cores than there are.
    """
    asked = settings.resource
    per_simulation = asked.cores_per_simulation or (max(1, cores // gpus) if gpus else 1)
    if per_simulation > cores:
        raise RunFolderError(
            f"resource.cores_per_simulation = {per_simulation}: {asked.label} has {cores} cores for this campaign"
        )
    total = gpus if gpus else cores // per_simulation
    if gpus and per_simulation * gpus > cores:
        total = cores // per_simulation
    simulate = min(asked.md_slots or total, total)
    learn = min(asked.ml_slots or total, total, len(settings.train.latent_dims))
    if asked.md_slots and asked.ml_slots and asked.md_slots + asked.ml_slots > total:
        # Fewer slots than the split wants: the stages share them in turn.
        simulate = total
    return Machine(
        cores=cores,
        gpus=gpus,
        slots=Slots(total=total, simulate=simulate, learn=learn),
        cores_per_slot=per_simulation,
        node_cores=node_cores or cores,
    )


def _show_nothing(decision: Decision) -> None:
    """What a campaign tells of its decisions when nobody listens."""


def _closing_seconds(walltime_min: float) -> float:
    """Time kept at the end of the walltime to close files and the pilot."""
    return min(60.0, 0.1 * walltime_min * 60.0)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
