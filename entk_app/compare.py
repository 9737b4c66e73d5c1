"""Does the steering help, and by how much: campaigns side by side, by what they took to fold and by what they saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from entk_app.compared_runs import (
    CONTROL,
    PS_PER_US,
    ComparedRun,
    check_same,
    explain_no_rmsd,
    find_target,
    read_runs,
    tell_difference,
)
from entk_app.effective import Arm, EffectivePerformance, compute_effective_performance
from entk_app.errors import CompareError
from entk_app.frames import read_packed_maps
from entk_app.records import FrameRef
from entk_app.report.data import FrameColumns
from entk_app.states import choose_frames, find_discoveries, fit_states

#: The percentile bootstrap of fewer runs misses the truth much more often than it says.
_FEW_RUNS = 6

_MAX_STATES = 10_000


@dataclass(frozen=True)
class Passage:
    """How long a run took.

    Attributes
    ----------
    time : float
        Until it was reached, else of the whole run.
    frame : FrameRef or None
        The first that reached it.
    """

    time: float
    reached: bool
    frame: FrameRef | None = None


@dataclass(frozen=True)
class Gain:
    """An arm against a control, by label."""

    control: str
    steered: str
    performance: EffectivePerformance


@dataclass(frozen=True)
class Measure:
    """One thing that all runs were to reach, and how long each took.

    Attributes
    ----------
    event : str
        What was to be reached.
    unit : str
        Of the times: µs of aggregate simulated time, or frames.
    passages : tuple of Passage
        In the order of the runs.
    arms : tuple of Arm
        Controls first.
    gains : tuple of Gain
        Of each other arm over each control; none where there is no control.
    """

    event: str
    unit: str
    passages: tuple[Passage, ...]
    arms: tuple[Arm, ...]
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class StatesComparison:
    """States seen against frames.

    Attributes
    ----------
    n_states : int
        That all frames were divided into.
    explained : float
        Share of the contact maps' variance that the principal components hold.
    n_target : int
        As many as every run of the control had seen by its end (of all runs, where there is no control).
    discoveries : tuple of arrays of int, in the order of the runs
        After how many frames the first, the second ... state had been seen.
    measure : Measure
        Frames until ``n_target`` states had been seen.
    """

    n_states: int
    explained: float
    n_target: int
    discoveries: tuple[NDArray[np.intp], ...]
    measure: Measure


@dataclass(frozen=True)
class Comparison:
    """All that was compared.

    Attributes
    ----------
    target_angstrom : float or None
        None: RMSD was not compared.
    folding : Measure or None
        Aggregate simulated time until a frame was within the target of the native structure.
    states : StatesComparison or None
    notes : tuple of str
        What was left out, and what a reader has to know.
    """

    runs: tuple[ComparedRun, ...]
    target_angstrom: float | None
    folding: Measure | None
    states: StatesComparison | None
    notes: tuple[str, ...]
    seed: int


def compare_runs(
    roots: Sequence[Path], *, target: float | None = None, with_states: bool = False, n_states: int = 100, seed: int = 1
) -> Comparison:
    """Read the runs and compare their arms.

    Parameters
    ----------
    roots : sequence of Path
        Run folders: finished, running or dead.
    target : float or None
        RMSD to the native structure, ångström; None: the one of their settings.
    with_states : bool
        Compare the states that they saw too. It is done anyhow where there is no native structure.
    n_states : int
    seed : int
        Of the resampling and of the states.

    Raises
    ------
    RunFolderError
        One of them is no run folder.
    CompareError
        They cannot be compared: fewer than two have frames, or they differ in what was simulated.
    """
    _check_request(roots, target, n_states, seed)
    runs, notes = read_runs(roots)
    check_same(runs)
    has_rmsd = all(run.frames.rmsd_angstrom is not None for run in runs)
    if target is not None and not has_rmsd:
        raise CompareError(f"--target {target:g}: {explain_no_rmsd(runs)}")
    if has_rmsd:
        target = find_target(runs, target, is_needed=not with_states)
    else:
        notes.append(f"RMSD is not compared: {explain_no_rmsd(runs)}")
    folding = None
    if target is not None:
        passages = tuple(find_passage(run.frames, target) for run in runs)
        folding = build_measure(f"RMSD ≤ {target:g} Å", "µs", runs, passages, seed)
    states = compare_states(runs, n_states, seed) if with_states or not has_rmsd else None
    return Comparison(runs, target, folding, states, (*notes, *_list_cautions(runs, target)), seed)


def _check_request(roots: Sequence[Path], target: float | None, n_states: int, seed: int) -> None:
    if target is not None and not (math.isfinite(target) and target > 0):
        raise CompareError(f"--target {target:g}: give an RMSD of more than 0 Å")
    if not 2 <= n_states <= _MAX_STATES:
        raise CompareError(f"--n-states {n_states}: give a number from 2 to {_MAX_STATES}")
    if not 0 <= seed < 2**31:
        raise CompareError(f"--seed {seed}: give a number from 0 to {2**31 - 1}")
    if len(roots) < 2:
        raise CompareError("one run cannot be compared: give the folders of two or more")
    places = [root.resolve() for root in roots]
    for root, place in zip(roots, places, strict=True):
        if places.count(place) > 1:
            raise CompareError(f"{root} is given twice: a replica is a run of its own, with another seed")


def _list_cautions(runs: Sequence[ComparedRun], target: float | None) -> list[str]:
    """What a reader has to know of the runs before believing the numbers."""
    cautions = []
    methods = {run.method for run in runs}
    if CONTROL not in methods:
        cautions.append(f"there is no control: run the same with steering.method={CONTROL} to learn what is gained")
    elif len(methods) == 1:
        cautions.append(f"there are controls only: run the same with another steering.method than {CONTROL}")
    seeds: dict[tuple[str, int], list[str]] = {}
    for run in runs:
        seeds.setdefault((run.arm, run.settings.seed), []).append(run.name)
    cautions += [
        f"{', '.join(names)} have the same seed, {seed}: they may not be independent replicas"
        for (_, seed), names in seeds.items()
        if len(names) > 1
    ]
    few = {arm: n for arm, n in Counter(run.arm for run in runs).items() if 1 < n < _FEW_RUNS}
    if few and CONTROL in methods and len(methods) > 1:
        cautions.append(
            f"few replicas ({', '.join(f'{n} of {arm}' for arm, n in few.items())}): intervals from resampling them "
            "are too narrow, those of rates hold for few"
        )
    own = [run.settings.stop.target_rmsd_angstrom for run in runs]
    if target is not None and any(stop is not None and stop > target for stop in own):
        cautions.append(
            f"some runs ended at a target of their own above {target:g} Å: they count as not having reached it, "
            "although they ended because they came near"
        )
    for what, read in (
        ("simulations at a time", lambda run: run.slots),
        ("simulate.report_interval_ps", lambda run: run.settings.simulate.report_interval_ps),
    ):
        differing = tell_difference(runs, read)
        if differing is not None:
            cautions.append(f"{what} differ: {differing}")
    return cautions


# Measuring.


def find_passage(frames: FrameColumns, target: float) -> Passage:
    """The aggregate simulated time (µs) at which a frame was first within the target, else of the whole run.

    Parameters
    ----------
    frames : FrameColumns
        With RMSD.
    target : float
        Ångström.
    """
    assert frames.rmsd_angstrom is not None
    near = np.flatnonzero(frames.rmsd_angstrom <= target)
    if not len(near):
        return Passage(float(frames.aggregate_ps.max()) / PS_PER_US, False)
    first = int(near[np.argmin(frames.aggregate_ps[near])])
    return Passage(float(frames.aggregate_ps[first]) / PS_PER_US, True, frames.ref(first))


def build_measure(
    event: str, unit: str, runs: Sequence[ComparedRun], passages: Sequence[Passage], seed: int
) -> Measure:
    """Arms of the runs, and what each gains over each control."""
    by_arm: dict[str, list[Passage]] = {}
    for run, passage in zip(runs, passages, strict=True):
        by_arm.setdefault(run.arm, []).append(passage)
    arms = tuple(
        Arm(label, np.array([p.time for p in of_arm]), np.array([p.reached for p in of_arm]))
        for label, of_arm in by_arm.items()
    )
    controls = {run.arm for run in runs if run.method == CONTROL}
    gains = tuple(
        Gain(
            control.label,
            arm.label,
            compute_effective_performance(control.times, control.reached, arm.times, arm.reached, seed=seed),
        )
        for control in arms
        for arm in arms
        if control.label in controls and arm.label not in controls
    )
    return Measure(event, unit, tuple(passages), arms, gains)


def compare_states(runs: Sequence[ComparedRun], n_states: int, seed: int) -> StatesComparison:
    """Divide the frames of all runs into states, and count those that each has seen.

    Parameters
    ----------
    runs : sequence of ComparedRun
    n_states : int
    seed : int

    Raises
    ------
    CompareError
        A file cannot be read any more.
    DataError
        The frames have no two distinct contact maps.
    """
    fitted = choose_frames([len(run.frames) for run in runs])
    sample = np.concatenate([
        packed[np.isin(rows, chosen)]
        for run, chosen in zip(runs, fitted, strict=True)
        for rows, packed in _read_maps(run)
    ])
    states = fit_states(sample, runs[0].system.n_residues, n_states, seed)
    discoveries = []
    for run in runs:
        labels = np.concatenate([states.assign(packed) for _, packed in _read_maps(run)])
        discoveries.append(find_discoveries(labels[np.argsort(run.frames.unix, kind="stable")]))
    controls = [i for i, run in enumerate(runs) if run.method == CONTROL] or range(len(runs))
    n_target = min(len(discoveries[i]) for i in controls)
    passages = [
        Passage(float(seen[n_target - 1]), True) if len(seen) >= n_target else Passage(float(len(run.frames)), False)
        for run, seen in zip(runs, discoveries, strict=True)
    ]
    measure = build_measure(f"{n_target} of {states.n_states} states seen", "frames", runs, passages, seed)
    return StatesComparison(states.n_states, states.explained, n_target, tuple(discoveries), measure)


def _read_maps(run: ComparedRun) -> Iterable[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
    """Rows of the frames and their packed contact maps, a segment at a time."""
    starts = np.flatnonzero(run.frames.frame == 0)
    for start, end in zip(starts, [*starts[1:], len(run.frames)], strict=True):
        path = run.layout.segment(int(run.frames.simulation[start]), int(run.frames.segment[start])).frames
        try:
            packed = read_packed_maps(path)[0]
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            # Read before; it may have been set aside since.
            raise CompareError(f"{path} cannot be read: {error}") from None
        yield np.arange(start, end), packed[: end - start]
