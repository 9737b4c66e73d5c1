"""History -> decision: which simulations go on, are purged, or start from an outlier, and why.

Pure functions: they read no file and draw random numbers only from a generator made of the campaign's seed.
The rules are those of Ma et al. 2019 (section 2.2): a simulation with at least ``min_frames`` none of whose last
``window`` frames is an outlier is purged, and its slot starts from an outlier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from entk_app.records import (
    Action,
    AnalysisRecord,
    Decision,
    FrameRef,
    Outlier,
    SegmentRecord,
    order_by_rmsd,
    order_by_score,
)
from entk_app.settings import Goal, Settings

#: A simulation whose task fails so often in a row is ended; its slot is restarted.
MAX_FAILURES = 2


@dataclass(frozen=True)
class Slots:
    """How many tasks run at a time: all, and the split once learning has begun."""

    total: int
    simulate: int
    learn: int

    @property
    def is_split(self) -> bool:
        """Whether models train on slots of their own while simulations go on; else the stages take turns."""
        return self.simulate + self.learn <= self.total

    def count_iterations(self, number: int) -> int:
        """Iterations of learning up to this one; in a split the initial phase has a number of its own, the first."""
        return max(1, number - self.is_split)


@dataclass(frozen=True)
class SimulationHistory:
    """One trajectory so far.

    Attributes
    ----------
    lost : frozenset of int
        Numbers of segments that were set aside: no data any more, and not given again.
    failures : int
        Tasks that failed in a row, the last because of ``failure``.
    """

    simulation: int
    origin: FrameRef | None = None
    segments: tuple[SegmentRecord, ...] = ()
    alive: bool = True
    failures: int = 0
    failure: str = ""
    lost: frozenset[int] = frozenset()

    @property
    def next_segment(self) -> int:
        return 1 + max((*(s.segment for s in self.segments), *self.lost), default=-1)

    def has(self, ref: FrameRef) -> bool:
        """Whether a frame of this simulation is data."""
        return any(s.segment == ref.segment and ref.frame < s.n_frames for s in self.segments)

    @property
    def n_frames(self) -> int:
        return sum(segment.n_frames for segment in self.segments)

    @property
    def time_ps(self) -> float:
        return sum(segment.time_ps for segment in self.segments)

    @property
    def last_rmsd_angstrom(self) -> float | None:
        return self.segments[-1].last_rmsd_angstrom if self.segments else None

    def position(self, ref: FrameRef) -> int:
        """Place of a frame among all frames of this simulation, from 0."""
        before = 0
        for segment in self.segments:
            if segment.segment == ref.segment:
                return before + ref.frame
            before += segment.n_frames
        raise KeyError(f"{ref} is not of simulation {self.simulation}")


@dataclass(frozen=True)
class History:
    """All that a decision may depend on.

    ``training`` says why models are to be trained next; None where those that there are go on serving.
    """

    iteration: int
    simulations: tuple[SimulationHistory, ...]
    n_decisions: int = 0
    used: frozenset[tuple[int, int, int]] = field(default=frozenset())
    seconds_left: float = float("inf")
    seconds_needed: float = 0.0
    limit: Literal["walltime", "budget"] = "walltime"
    training: str | None = "train the models"

    @property
    def alive(self) -> tuple[SimulationHistory, ...]:
        return tuple(s for s in self.simulations if s.alive)

    @property
    def n_frames(self) -> int:
        return sum(s.n_frames for s in self.simulations)

    @property
    def time_us(self) -> float:
        return sum(s.time_ps for s in self.simulations) * 1e-6

    @property
    def segments(self) -> tuple[SegmentRecord, ...]:
        return tuple(segment for s in self.simulations for segment in s.segments)

    @property
    def best(self) -> SegmentRecord | None:
        """The segment with the frame nearest to the native structure."""
        scored = [segment for segment in self.segments if segment.min_rmsd_angstrom is not None]
        return min(scored, key=lambda segment: segment.min_rmsd_angstrom or 0.0, default=None)

    @property
    def min_rmsd_angstrom(self) -> float | None:
        return self.best.min_rmsd_angstrom if self.best else None

    def find_best_score(self, goal: Goal) -> BestScore | None:
        return find_best_score(self.segments, goal)


@dataclass(frozen=True)
class BestScore:
    """The best score so far, and the frame that has it."""

    value: float
    frame: FrameRef


def find_best_score(segments: Iterable[SegmentRecord], goal: Goal) -> BestScore | None:
    """The best score of these segments' frames, the first of equals; None where they have none."""
    known = [
        BestScore(s.best_score, FrameRef(simulation=s.simulation, segment=s.segment, frame=s.best_score_frame))
        for s in segments
        if s.best_score is not None and s.best_score_frame is not None
    ]
    choose = min if goal == "minimise" else max
    return choose(known, key=lambda best: best.value, default=None)


def decide_start(settings: Settings, slots: Slots) -> Decision:
    """The first turn: every slot starts a simulation from the initial structure, there is nothing to learn from yet."""
    count = slots.total
    actions = tuple(
        Action(kind="start", simulation=number, reason="first simulations, from the initial structure")
        for number in range(count)
    )
    return Decision(index=0, iteration=1, next="simulate", reason=f"{count} simulations start", actions=actions)


def decide_after_simulate(history: History, settings: Settings, slots: Slots) -> Decision:
    """After a simulate stage: stop, simulate on, or learn."""
    stop = find_stop(history, settings)
    if stop is not None:
        return stop
    if history.alive and all(s.failures >= MAX_FAILURES for s in history.alive):
        reason = f"every simulation failed {MAX_FAILURES} times in a row; the last: {history.alive[-1].failure}"
        return decide_stop(history, "failed", reason)
    ended, going_on = _end_failed(history.alive)
    if settings.is_control:
        return _decide_control(history, settings, slots, ended, going_on)
    wanted = settings.steering.initial_frames
    if 0 < history.n_frames < wanted or not history.n_frames:
        reason = f"{history.n_frames} of {wanted or 1} initial frames: simulate on before learning"
        stays = tuple(_continue(s, "initial phase") for s in going_on)
        return _decision(history, "simulate", reason, (*ended, *stays, *_renew(history, ended, going_on, slots.total)))
    if not slots.is_split:
        return _learn(history, settings, "learn", "look for outliers", ended)
    # The slots that learning takes from the initial phase.
    by_staleness = sorted(going_on, key=lambda s: _staleness(s, None), reverse=True)
    released = by_staleness[: max(0, len(going_on) - slots.simulate)]
    actions = (
        *ended,
        *_release(released),
        *(_continue(s, "simulates on beside the first training") for s in going_on if s not in released),
        *_fill_slots(slots.simulate - len(going_on), (), _next_id(history)),
    )
    reason = f"{slots.simulate} simulations go on, learning has {slots.learn} slots"
    return _learn(history, settings, "simulate+learn", reason, actions, history.iteration + 1)


def _decide_control(
    history: History,
    settings: Settings,
    slots: Slots,
    ended: Sequence[Action],
    going_on: Sequence[SimulationHistory],
) -> Decision:
    """Independent simulations: each goes on, whatever it found; one that keeps failing starts anew."""
    if history.iteration >= settings.stop.max_iterations:
        reason = f"{history.iteration} iterations done, stop.max_iterations reached"
        return decide_stop(history, "max_iterations", reason)
    # A campaign that goes on with a smaller pilot.
    released = tuple(
        Action(kind="end", simulation=s.simulation, reason=f"this pilot has slots for {slots.total} simulations")
        for s in going_on[slots.total :]
    )
    stays = tuple(_continue(s, "independent of the others (steering.method = none)") for s in going_on[: slots.total])
    actions = (*ended, *released, *stays, *_renew(history, ended, going_on, slots.total))
    return _decision(history, "simulate", f"{len(stays)} go on", actions, iteration=history.iteration + 1)


def _renew(
    history: History, ended: Sequence[Action], going_on: Sequence[SimulationHistory], n_slots: int
) -> tuple[Action, ...]:
    """Simulations from the initial structure in place of those that failed, and in slots that are free."""
    first_id = _next_id(history)
    renewed = tuple(
        Action(
            kind="start",
            simulation=first_id + number,
            reason=f"in place of simulation {action.simulation}, from the initial structure",
        )
        for number, action in enumerate(ended)
    )
    # A campaign that goes on with a larger pilot.
    n_more = max(0, n_slots - len(going_on) - len(renewed))
    return (*renewed, *_fill_slots(n_more, (), first_id + len(renewed)))


def select_best_frames(segments: Iterable[SegmentRecord], settings: Settings) -> tuple[FrameRef, ...]:
    """The best frame of each segment, best first, as many as join the outliers; those beside it are nearly the same.

    By RMSD, or by the score where there is one; none where nothing is known of either.
    """
    is_only = settings.steering.method == "rmsd-only"
    count = settings.analyse.max_outliers if is_only else settings.analyse.best_frames
    by_score = settings.steering.has_score and not is_only
    sign = -1.0 if by_score and settings.steering.goal == "maximise" else 1.0
    ranked = []
    for segment in segments if count else ():
        value, frame = (
            (segment.best_score, segment.best_score_frame)
            if by_score
            else (segment.min_rmsd_angstrom, segment.min_rmsd_frame)
        )
        if value is not None and frame is not None:
            ranked.append((sign * value, segment.simulation, segment.segment, frame))
    return tuple(FrameRef(simulation=i, segment=n, frame=frame) for _, i, n, frame in sorted(ranked)[:count])


def asks_for_training(decisions: Iterable[Decision], iteration: int) -> bool | None:
    """Whether models train in an iteration, as the decision that its learning began with says; None: there is none."""
    began = next((d for d in decisions if d.iteration == iteration and "learn" in d.next), None)
    return None if began is None else began.train


def _learn(
    history: History,
    settings: Settings,
    following: str,
    reason: str,
    actions: Sequence[Action],
    iteration: int | None = None,
) -> Decision:
    """A decision that frames are analysed, and before it models trained where there is a reason to."""
    if settings.learns:
        how = "the models go on serving" if history.training is None else f"models train: {history.training}"
        reason = f"{reason}; {how}"
    decision = _decision(history, following, reason, actions, iteration)
    return decision.model_copy(update={"train": history.training is not None})


def decide_after_analysis(
    history: History, analysis: AnalysisRecord | None, settings: Settings, slots: Slots
) -> Decision:
    """After an analyse stage: stop, or fill the slots of the next iteration.

    Parameters
    ----------
    history : History
    analysis : AnalysisRecord or None
        None where the analysis failed: simulations go on, nothing is purged or restarted.
    """
    n_outliers = None if analysis is None else len(analysis.outliers)
    stop = find_stop(history, settings)
    done = slots.count_iterations(history.iteration)
    if stop is None and done >= settings.stop.max_iterations:
        stop = decide_stop(history, "max_iterations", f"{done} iterations done, stop.max_iterations reached")
    if stop is not None:
        return stop.model_copy(update={"n_outliers": n_outliers})

    candidates = [] if analysis is None else list(rank_restarts(analysis.outliers, history, settings))
    last_outliers = {s.simulation: find_last_outlier(s, analysis) for s in history.alive}
    ended, alive = _end_failed(history.alive)
    by_staleness = sorted(alive, key=lambda s: _staleness(s, last_outliers[s.simulation]), reverse=True)

    # Fewer slots simulate once learning has begun.
    released = by_staleness[: max(0, len(alive) - slots.simulate)]
    staying = [s for s in by_staleness if s not in released]
    free = slots.simulate - len(staying)
    purges = [] if analysis is None else _choose_purges(staying, last_outliers, settings, free)
    # Nothing is purged that no outlier could replace.
    affordable = max(0, len(candidates) - free)
    purged, held = dict(purges[:affordable]), dict(purges[affordable:])

    leaving = _release(released)
    leaving += [Action(kind="purge", simulation=number, reason=reason) for number, reason in purged.items()]
    gone = {action.simulation for action in leaving}
    stays = []
    for simulation in alive:
        number = simulation.simulation
        if number in gone:
            continue
        if number in held:
            why = f"{held[number]}, but no outlier is left to start from: goes on"
        elif analysis is None:
            why = "no analysis this iteration: goes on"
        else:
            why = _describe_last(simulation, last_outliers[number])
        stays.append(_continue(simulation, why))
    starts = _fill_slots(slots.simulate - len(stays), candidates, _next_id(history))
    n_restarts = sum(action.kind == "restart" for action in starts)
    reason = f"{len(stays)} go on, {len(leaving) + len(ended)} ended, {n_restarts} restarted from outliers"
    reason += _describe_broken(analysis)
    actions = (*ended, *leaving, *stays, *starts)
    if slots.is_split:
        decision = _learn(history, settings, "simulate+learn", reason, actions, history.iteration + 1)
    else:
        decision = _decision(history, "simulate", reason, actions, history.iteration + 1)
    return decision.model_copy(update={"n_outliers": n_outliers})


def decide_refill(
    history: History,
    analysis: AnalysisRecord | None,
    settings: Settings,
    n_slots: int,
    following: Literal["simulate", "simulate+learn"],
) -> Decision | None:
    """Between two analyses, where simulations do not wait for one: as many simulations as there are slots.

    Simulations that keep failing are ended; slots that are free start from the newest analysis' outliers.

    Parameters
    ----------
    history : History
    analysis : AnalysisRecord or None
        The newest.
    settings : Settings
    n_slots : int
        Simulations at a time.
    following : str
        ``next`` of the decision: what goes on.

    Returns
    -------
    Decision or None
        None where nothing changes.
    """
    ended, alive = _end_failed(history.alive)
    last_outliers = {s.simulation: find_last_outlier(s, analysis) for s in alive}
    by_staleness = sorted(alive, key=lambda s: _staleness(s, last_outliers[s.simulation]), reverse=True)
    released = [
        Action(kind="end", simulation=s.simulation, reason=f"this pilot has slots for {n_slots} simulations")
        for s in by_staleness[: max(0, len(alive) - n_slots)]
    ]
    candidates = [] if analysis is None else list(rank_restarts(analysis.outliers, history, settings))
    starts = _fill_slots(n_slots - len(alive), candidates, _next_id(history))
    if not (ended or released or starts):
        return None
    reason = f"{len(ended) + len(released)} ended, {len(starts)} started in free slots{_describe_broken(analysis)}"
    return _decision(history, following, reason, (*ended, *released, *starts))


def _release(simulations: Iterable[SimulationHistory]) -> list[Action]:
    return [
        Action(kind="end", simulation=s.simulation, reason="its slot goes to learning after the initial phase")
        for s in simulations
    ]


def _choose_purges(
    simulations: Sequence[SimulationHistory], last_outliers: dict[int, int | None], settings: Settings, free: int
) -> list[tuple[int, str]]:
    """Simulations to purge with the reason, most urgent first: by the paper's rule, then for ``min_restarts``.

    Parameters
    ----------
    simulations : sequence of SimulationHistory
        Those longest without an outlier first.
    last_outliers : dict
        Place of each one's newest outlier.
    free : int
        Slots that are free without any purge.
    """
    purges, spare = [], []
    for simulation in simulations:
        last = last_outliers[simulation.simulation]
        reason = explain_purge(simulation, last, settings)
        if reason is not None:
            purges.append((simulation.simulation, reason))
        elif simulation.n_frames >= settings.steering.min_frames:
            reason = f"longest without an outlier ({_describe_last(simulation, last)}): steering.min_restarts"
            spare.append((simulation.simulation, reason))
    return purges + spare[: max(0, settings.steering.min_restarts - len(purges) - free)]


def _fill_slots(count: int, candidates: Sequence[Outlier], first_id: int) -> list[Action]:
    """New simulations from outliers, and from the initial structure when these run out."""
    starts = []
    for place in range(count):
        number = first_id + place
        if place < len(candidates):
            outlier = candidates[place]
            starts.append(
                Action(
                    kind="restart",
                    simulation=number,
                    origin=outlier.frame,
                    rmsd_angstrom=outlier.rmsd_angstrom,
                    score=outlier.score,
                    reason=f"from the outlier {outlier.frame}, {_describe_outlier(outlier)}",
                )
            )
        else:
            reason = "no outlier to start from: from the initial structure"
            starts.append(Action(kind="start", simulation=number, reason=reason))
    return starts


def rank_restarts(outliers: Iterable[Outlier], history: History, settings: Settings) -> Sequence[Outlier]:
    """The outliers that a simulation may start from, in the order in which they are taken.

    A frame that was a start before, the first frame of a simulation, and broken structures are left out. The same order
    for the same seed and iteration. With ``one_per_region`` outliers near one another take turns with the others.
    """
    found = list(outliers)
    usable = [o for o in found if o.frame.key not in history.used and not (o.frame.segment == 0 == o.frame.frame)]
    usable = [o for o in usable if not o.problems]
    ranked = _order_by_ranking(usable, history, settings)
    if not settings.steering.one_per_region:
        return ranked
    return spread_regions(ranked, [o.region for o in found if o.frame.key in history.used])


def spread_regions(ranked: Sequence[Outlier], used: Iterable[int | None]) -> list[Outlier]:
    """Outliers of the least used regions first: the best of each, then the second of each, and so on.

    Parameters
    ----------
    ranked : sequence of Outlier
        Best first; those without a region are each of their own.
    used : iterable of int or None
        Regions of the outliers that were starts before.
    """
    counts = Counter(used)
    turns = []
    for place, outlier in enumerate(ranked):
        turn = 0 if outlier.region is None else counts[outlier.region]
        counts[outlier.region] += 1
        turns.append((turn, place))
    return [ranked[place] for _, place in sorted(turns)]


def _order_by_ranking(usable: Sequence[Outlier], history: History, settings: Settings) -> list[Outlier]:
    steering = settings.steering
    if steering.method == "random":
        generator = np.random.default_rng([settings.seed, history.iteration, 0x72616E6B])
        in_order = order_by_rmsd(usable)
        return [in_order[place] for place in generator.permutation(len(in_order))]
    by_score = steering.has_score and steering.ranking in ("score", "mix")
    is_unknown = any((o.score if by_score else o.rmsd_angstrom) is None for o in usable)
    if steering.ranking == "novelty" or is_unknown:
        return sorted(usable, key=lambda o: (-o.isolation, o.frame.key))
    best_first = list(order_by_score(usable, steering.goal) if by_score else order_by_rmsd(usable))
    if steering.ranking != "mix":
        return best_first
    generator = np.random.default_rng([settings.seed, history.iteration, 0x6D6978])
    ordered: list[Outlier] = []
    while best_first:
        # Of every four restarts of the campaign, however few a decision takes.
        turn = (len(history.used) + len(ordered)) % 4
        place = 0 if turn < 2 else int(generator.integers(len(best_first))) if turn == 2 else -1
        ordered.append(best_first.pop(place))
    return ordered


def find_last_outlier(simulation: SimulationHistory, analysis: AnalysisRecord | None) -> int | None:
    """Place of a simulation's newest outlier among its frames, from 0; None where it has none."""
    if analysis is None:
        return None
    places = [simulation.position(o.frame) for o in analysis.outliers if o.frame.simulation == simulation.simulation]
    return max(places, default=None)


def explain_purge(simulation: SimulationHistory, last_outlier: int | None, settings: Settings) -> str | None:
    """Why a simulation is to be purged; None where it is not."""
    n_frames, window = simulation.n_frames, settings.steering.window
    if n_frames < settings.steering.min_frames:
        return None
    if last_outlier is not None and last_outlier >= n_frames - window:
        return None
    return f"{n_frames} frames, none of the last {window} an outlier"


def find_stop(history: History, settings: Settings) -> Decision | None:
    """The end of the campaign, where a rule of ``stop`` or its time says so; else None."""
    stop = settings.stop
    best, lowest = history.best, history.min_rmsd_angstrom
    target = stop.target_rmsd_angstrom
    if target is not None and best is not None and lowest is not None and lowest <= target:
        return decide_stop(
            history,
            "target_rmsd",
            f"folded: simulation {best.simulation} segment {best.segment} frame {best.min_rmsd_frame} is at "
            f"{lowest:.2f} Å, the target is {target:g} Å",
        )
    found = history.find_best_score(settings.steering.goal)
    if stop.target_score is not None and found is not None and _reaches(found.value, stop.target_score, settings):
        return decide_stop(
            history,
            "target_score",
            f"{found.frame} has the {settings.steering.score_name} {found.value:.6g}, the target is "
            f"{stop.target_score:g}",
        )
    if stop.max_time_us is not None and history.time_us >= stop.max_time_us * (1 - 1e-9):
        return decide_stop(history, "max_time", f"{history.time_us:.6g} µs simulated, stop.max_time_us reached")
    if history.seconds_left <= 0:
        reason = f"the {history.limit} is used up; what was running was ended in order"
        return decide_stop(history, history.limit, reason)
    if history.seconds_left < history.seconds_needed:
        return decide_stop(
            history,
            history.limit,
            f"{history.seconds_left / 60:.1f} min of {history.limit} left, the next stage takes about "
            f"{history.seconds_needed / 60:.1f} min",
        )
    return None


def _reaches(score: float, target: float, settings: Settings) -> bool:
    return score <= target if settings.steering.goal == "minimise" else score >= target


def decide_stop(history: History, stop_reason: str, reason: str) -> Decision:
    """The end of the campaign on this pilot."""
    return _decision(history, "stop", reason, ()).model_copy(update={"stop_reason": stop_reason})


def _decision(
    history: History, following: str, reason: str, actions: Sequence[Action], iteration: int | None = None
) -> Decision:
    return Decision(
        index=history.n_decisions,
        iteration=history.iteration if iteration is None else iteration,
        next=following,  # type: ignore[arg-type]
        reason=reason,
        actions=tuple(actions),
        n_frames=history.n_frames,
        min_rmsd_angstrom=history.min_rmsd_angstrom,
    )


def _end_failed(alive: Iterable[SimulationHistory]) -> tuple[tuple[Action, ...], tuple[SimulationHistory, ...]]:
    ended, going_on = [], []
    for simulation in alive:
        if simulation.failures >= MAX_FAILURES:
            reason = f"its task failed {simulation.failures} times in a row: {simulation.failure}"
            ended.append(Action(kind="end", simulation=simulation.simulation, reason=reason))
        else:
            going_on.append(simulation)
    return tuple(ended), tuple(going_on)


def _continue(simulation: SimulationHistory, why: str) -> Action:
    return Action(kind="continue", simulation=simulation.simulation, reason=why)


def _next_id(history: History) -> int:
    return max((s.simulation for s in history.simulations), default=-1) + 1


def _staleness(simulation: SimulationHistory, last_outlier: int | None) -> tuple[int, float, int]:
    """Frames since the last outlier; then the farther from native, then the younger, goes first."""
    since = simulation.n_frames - (last_outlier if last_outlier is not None else -1)
    rmsd = simulation.last_rmsd_angstrom
    return (since, rmsd if rmsd is not None else 0.0, simulation.simulation)


def _describe_last(simulation: SimulationHistory, last_outlier: int | None) -> str:
    if last_outlier is None:
        return f"{simulation.n_frames} frames, no outlier yet"
    return f"last outlier {simulation.n_frames - 1 - last_outlier} frames ago"


def _describe_outlier(outlier: Outlier) -> str:
    score = "" if outlier.score is None else f", score {outlier.score:.6g}"
    if outlier.rmsd_angstrom is None:
        return f"isolation {outlier.isolation:.2f}{score}"
    return f"RMSD {outlier.rmsd_angstrom:.2f} Å{score}"


def _describe_broken(analysis: AnalysisRecord | None) -> str:
    """How many outliers nothing may start from, with an example; nothing where all are sound."""
    broken = [] if analysis is None else [outlier for outlier in analysis.outliers if outlier.problems]
    if not broken:
        return ""
    first = broken[0]
    return f"; {len(broken)} outliers left out as broken structures, such as {first.frame}: {'; '.join(first.problems)}"
