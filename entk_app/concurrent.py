"""A campaign whose simulations do not wait for learning: several chains of stages on the same pilot.

Each slot runs segment after segment; models train and frames are analysed beside them, on slots of their own. A new
segment follows the newest decision; a simulation that a decision ends is ended within its segment, and what starts in
its place begins at once. Orders, records and rules are those of :mod:`entk_app.campaign`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from entk_app import steering
from entk_app.campaign import Campaign, StageSpec, TaskSpec
from entk_app.errors import RecordError
from entk_app.layout import RunLayout
from entk_app.machine import Machine
from entk_app.records import AnalyseTask, AnalysisRecord, Decision, SegmentKey, SimulateTask, TrainTask, read_record
from entk_app.settings import Settings
from entk_app.steering import MAX_FAILURES, History, SimulationHistory


@dataclass
class _Learning:
    """Where the learning of the present iteration is.

    Attributes
    ----------
    due : str or None
        What comes next; None before learning has begun, while it runs, and when there is no time for it any more.
    trainings : tuple of TaskSpec
        Ordered, not begun: more than the learning slots take at a time.
    attempt : int
        Of the analysis.
    n_segments : int or None
        What the newest models were trained on; None where this pilot has trained none.
    awaited : int
        Segments that there must be before an analysis begins that no training came before.
    """

    due: Literal["train", "analyse"] | None = None
    trainings: tuple[TaskSpec, ...] = ()
    attempt: int = 1
    n_segments: int | None = None
    awaited: int = 0


class ConcurrentCampaign(Campaign):
    """A campaign in a run folder; parameters as of :class:`entk_app.campaign.Campaign`.

    Notes
    -----
    A chain is an EnTK Pipeline. There are as many as simulations in the beginning; the one whose segment ends the
    initial phase learns from then on. A decision after an analysis judges simulations by the frames that were
    analysed: what was simulated meanwhile counts in the next.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._running: dict[str, StageSpec] = {}
        self._since: dict[str, float] = {}
        self._n_chains: int | None = None
        self._learning = _Learning()
        self._n_failed_in_a_row = 0
        # Simulations of a control that have ended a segment in the present iteration.
        self._turned: set[int] = set()

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        return tuple(self._running.values())

    def begin(self) -> tuple[StageSpec, ...]:
        going = self._reread() if self.layout.decisions.exists() else None
        if going is None:
            self.has_begun = True
            self._take(steering.decide_start(self.settings, self.machine.slots))
        else:
            self._take_up(going)
            # The chains that begin now are all that there will be: learning has one from the start.
            self._learning.awaited = 0
        first = () if self.final_decision is not None else self._launch()
        self._n_chains = len(first)
        return first

    def follow(self, ended: StageSpec) -> tuple[StageSpec, ...]:
        name = ended.tasks[0].name
        del self._running[name]
        self._durations[ended.kind] = time.time() - self._since.pop(name)
        if self.final_decision is None and not all(self._is_done(task) for task in ended.tasks):
            deadline = self.find_deadline()
            if deadline is not None:
                self.limit_time(deadline)
        if ended.kind == "simulate":
            self._after_segment(ended.tasks[0])
        elif self.final_decision is None:
            self._after_training() if ended.kind == "train" else self._after_analysing(name)
        if self.final_decision is None:
            return self._launch()
        if not self._running:
            # All have heard it.
            self.layout.stop_request.unlink(missing_ok=True)
        return ()

    def note_pilot_active(self) -> None:
        self._since = dict.fromkeys(self._since, time.time())

    @property
    def _is_learning(self) -> bool:
        """Whether the initial phase is over."""
        return any(decision.next in ("learn", "simulate+learn") for decision in self.decisions)

    def _take_up(self, going: Decision) -> None:
        stop = steering.find_stop(self._history(()), self.settings)
        if stop is not None:
            self._finish(stop)
            return
        if self._is_learning:
            self._take_up_learning(going)
        if self.final_decision is None:
            self._refill()

    def _take_up_learning(self, going: Decision) -> None:
        """What of the iteration is on disk stays; a decision that was not taken is taken now."""
        analysis = self.results.take_analysis(self.iteration)
        if analysis is not None:
            self._decide(analysis)
            return
        if not self._trains:
            self._learning.due = "analyse"
            return
        missing = tuple(task for task in self._order_trainings(going) if not self._is_done(task))
        if not missing or (self.results.models and self.layout.analysis_task(self.iteration).exists()):
            self._learning.due = "analyse"
        else:
            self._learning.due, self._learning.trainings = "train", missing

    # What begins.

    def _launch(self) -> tuple[StageSpec, ...]:
        """Learning where it is due, and a segment of every simulation that waits for one, as chains are free."""
        is_first = self._n_chains is None
        ready = list(self._order_learning())
        for simulation in self._list_waiting():
            if not is_first and len(self._running) + len(ready) >= (self._n_chains or 0):
                break
            if is_first or self._has_time("simulate"):
                ready.append(self._order_next(simulation))
        for stage in ready:
            name = stage.tasks[0].name
            self._running[name], self._since[name] = stage, time.time()
        if not self._running:
            history = self._history(())
            left = f"{history.seconds_left / 60:.1f} min of {history.limit} left"
            self._finish(steering.decide_stop(history, history.limit, f"{left}, a segment takes longer"))
        return tuple(ready)

    def _list_waiting(self) -> list[SimulationHistory]:
        at_work = {task.order.parent for stage in self._running.values() for task in stage.tasks}
        return [s for s in self.results.alive if self.layout.simulation(s.simulation) not in at_work]

    def _order_next(self, simulation: SimulationHistory) -> StageSpec:
        going = self._going or self.decisions[-1]
        task = self._order_segment(simulation, going, self._whole, self.machine.simulation_cores(0))
        return StageSpec("simulate", f"simulate.{going.iteration:04d}.{going.index:04d}", (task,))

    def _order_learning(self) -> tuple[StageSpec, ...]:
        """The next step of learning; none while one runs, nor before there is anything new to learn from."""
        learning = self._learning
        if learning.due is None or any(stage.kind != "simulate" for stage in self._running.values()):
            return ()
        if learning.due == "analyse":
            if self._count_ended() < learning.awaited:
                return ()
            if not self._has_time("analyse"):
                learning.due = None
                return ()
            learning.due, learning.awaited = None, 0
            return (self._build_analyse(learning.attempt),)
        if not learning.trainings:
            n_segments = len(self.results.list_segments())
            if n_segments == learning.n_segments:
                return ()
            if not self._has_time("train", "analyse"):
                learning.due = None
                return ()
            learning.trainings = self._order_trainings(self._going or self.decisions[-1])
            learning.n_segments = n_segments
        n_slots = self.machine.slots.learn
        batch, learning.trainings = learning.trainings[:n_slots], learning.trainings[n_slots:]
        learning.due = None
        return (StageSpec("train", f"train.{self.iteration:04d}", batch),)

    def _choose_training_segments(self, decision: Decision) -> tuple[SegmentKey, ...]:
        """All there are; for models that were ordered before a pilot was cut off, those of that time."""
        present = self.results.list_segments()
        for latent_dim in self.settings.train.latent_dims:
            try:
                order = read_record(TrainTask, self.layout.model(decision.iteration, latent_dim).task)
            except RecordError:
                continue
            return tuple(key for key in order.segments if key in present)
        return present

    def _has_time(self, *kinds: str) -> bool:
        history = self._history(kinds)
        return history.seconds_left > 0 and history.seconds_left >= history.seconds_needed

    # What has ended.

    def _after_segment(self, task: TaskSpec) -> None:
        self._collect_segment(task)
        if self.final_decision is not None:
            return
        history = self._history(())
        stop = steering.find_stop(history, self.settings)
        if stop is None and self._n_failed_in_a_row >= MAX_FAILURES * len(history.alive):
            reason = f"{self._n_failed_in_a_row} simulate tasks failed in a row; the last: {self.last_failure}"
            stop = steering.decide_stop(history, "failed", reason)
        if stop is not None:
            self._finish(stop)
        elif not self._is_learning:
            self._judge_initial_phase(history)
        elif any(s.failures >= MAX_FAILURES for s in history.alive):
            self._refill()

    def _collect_segment(self, task: TaskSpec) -> None:
        """Take in what a simulate task published; one that published nothing, unasked, has failed."""
        order = read_record(SimulateTask, task.order)
        simulation = self.results.take_segments(order.simulation)
        published = [segment for segment in simulation.segments if segment.segment >= order.segment]
        if published and published[-1].ended_by != "save":
            self.results.simulations[order.simulation] = replace(simulation, failures=0, failure="")
            self._n_failed_in_a_row = 0
            self._turned.add(order.simulation)
        elif simulation.alive and not self.is_over and self.final_decision is None:
            failed = self.layout.segment(order.simulation, simulation.next_segment).task if published else task.order
            self._count_failure(simulation, failed if failed.exists() else task.order)
            self._n_failed_in_a_row += 1

    def _judge_initial_phase(self, history: History) -> None:
        """It lasts until there are enough frames and every simulation has given some."""
        is_failing = any(s.failures >= MAX_FAILURES for s in history.alive)
        if self.settings.is_control:
            if is_failing or self._turned >= {s.simulation for s in history.alive}:
                self._turned.clear()
                decision = steering.decide_after_simulate(history, self.settings, self.machine.slots)
                self._finish(decision) if decision.next == "stop" else self._take_and_end(decision)
            return
        is_long = history.n_frames >= self.settings.steering.initial_frames
        if not is_failing and not (is_long and all(s.segments for s in history.alive)):
            return
        decision = steering.decide_after_simulate(history, self.settings, self.machine.slots)
        if decision.next == "stop":
            self._finish(decision)
            return
        self._take_and_end(decision)
        if decision.next != "simulate":
            self._begin_learning(waits=False)

    def _begin_learning(self, waits: bool) -> None:
        """Models train, or serve on: then an analysis waits until each slot has had the time to give a segment."""
        self._learning.due = "train" if self._trains else "analyse"
        waits = waits and not self._trains
        self._learning.awaited = self._count_ended() + self.machine.slots.simulate if waits else 0

    def _count_ended(self) -> int:
        """Segments that ended their task; those that it only saved on the way do not count."""
        simulations = self.results.simulations.values()
        return sum(segment.ended_by != "save" for simulation in simulations for segment in simulation.segments)

    def _after_training(self) -> None:  # type: ignore[override]
        if self._learning.trainings:
            self._learning.due = "train"
            return
        self._collect_models()
        stop = self._find_giving_up()
        if stop is not None:
            self._finish(stop)
        elif self.results.models:
            self._learning.due, self._learning.attempt = "analyse", 1
        else:
            self._decide(None)

    def _after_analysing(self, task: str) -> None:
        analysis = self._collect_analysis(task)
        stop = self._find_giving_up() if analysis is None else None
        if stop is not None:
            self._finish(stop)
        elif analysis is None and self._learning.attempt == 1 and not self.is_over:
            self._learning.due, self._learning.attempt = "analyse", 2
        else:
            self._decide(analysis)

    def _decide(self, analysis: AnalysisRecord | None) -> None:
        """The decision that an iteration ends with, by the frames that it has analysed."""
        history = self._history(())
        stop = steering.find_stop(history, self.settings)
        if stop is not None:
            self._finish(stop)
            return
        seen = history if analysis is None else self._restrict(history)
        decision = steering.decide_after_analysis(seen, analysis, self.settings, self.machine.slots).model_copy(
            update={"n_frames": history.n_frames, "min_rmsd_angstrom": history.min_rmsd_angstrom}
        )
        if decision.next == "stop":
            self._finish(decision)
            return
        self._take_and_end(decision)
        self._begin_learning(waits=analysis is not None)

    def _list_analysed(self) -> tuple[SegmentKey, ...]:
        """Segments that the newest analysis was ordered to look at."""
        newest = self.results.newest
        if newest is None:
            return ()
        return read_record(AnalyseTask, self.layout.analysis_task(newest.iteration)).segments

    def _restrict(self, history: History) -> History:
        """What the analysis knew."""
        analysed = self._list_analysed()
        known = {(key.simulation, key.segment) for key in analysed}
        return replace(
            history,
            simulations=tuple(
                replace(s, segments=tuple(r for r in s.segments if (r.simulation, r.segment) in known))
                for s in history.simulations
            ),
        )

    def _refill(self) -> None:
        """Between two analyses: what cannot go on makes room, and free slots are filled."""
        slots, is_learning = self.machine.slots, self._is_learning
        decision = steering.decide_refill(
            self._history(()),
            self.results.newest,
            self.settings,
            slots.simulate if is_learning else slots.total,
            "simulate+learn" if is_learning else "simulate",
        )
        if decision is not None:
            self._take_and_end(decision)

    def _take_and_end(self, decision: Decision) -> None:
        self._take(decision)
        for action in decision.actions:
            if action.kind in ("purge", "end"):
                # Its task looks for it every second.
                self.layout.end_request(action.simulation).touch()

    def _finish(self, stop: Decision) -> None:
        self._take(stop)
        if self._running:
            self.layout.stop_request.touch()

    def _collect_at_the_end(self) -> None:
        for stage in self._running.values():
            for task in stage.tasks if stage.kind == "simulate" else ():
                self.results.take_segments(read_record(SimulateTask, task.order).simulation)
        self._running.clear()


def make_campaign(layout: RunLayout, settings: Settings, machine: Machine) -> Campaign:
    """The campaign of a run folder, coupled as its settings say."""
    kind = ConcurrentCampaign if settings.coupling == "concurrent" else Campaign
    return kind(layout, settings, machine)
