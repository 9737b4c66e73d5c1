"""Run folders to be compared: read, told apart by what steered them, refused where they simulated another thing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from entk_app.errors import CompareError
from entk_app.layout import RunLayout
from entk_app.records import SystemRecord
from entk_app.report.data import FrameColumns, read_frame_columns
from entk_app.run_reader import RunReader, RunState
from entk_app.settings import Settings, known_keys

#: ``steering.method`` of an ensemble of simulations that nothing steers: what the others are measured against.
CONTROL = "none"

PS_PER_US = 1e6

#: Settings that must be the same for all runs: what is simulated, and how.
PHYSICS = (
    "system.name", "system.model", "system.solvent", "system.ionic_strength_molar", "system.padding_angstrom",
    "simulate.temperature_k", "simulate.pressure_bar",
    "simulate.friction_per_ps", "simulate.time_step_fs",
    "simulate.hydrogen_mass_amu", "simulate.cutoff_angstrom", "simulate.contact_cutoff_angstrom",
)  # fmt: skip

#: Settings that do not make another arm: where and for how long it ran, and those that are the same or named anyhow.
_NO_MATTER = ("seed", "system.", "stop.", "faults.", "resource.", "simulate.platform", "steering.method", *PHYSICS)
#: Nor do these where nothing is steered.
_NO_MATTER_TO_CONTROL = ("train.", "analyse.", "steering.")

@dataclass(frozen=True)
class ComparedRun:
    """One run folder, read.

    Attributes
    ----------
    name : str
        Of its folder, with as much of the path as tells it from the others.
    arm : str
        Label of the arm that it is of.
    slots : int
        Simulations that its first decision started.
    is_over : bool
        False: it runs, or was cut off.
    """

    name: str
    layout: RunLayout
    settings: Settings
    system: SystemRecord
    arm: str
    slots: int
    n_simulations: int
    is_over: bool
    frames: FrameColumns

    @property
    def method(self) -> str:
        return get_method(self.settings)

    @property
    def total_us(self) -> float:
        return float(self.frames.aggregate_ps.max()) / PS_PER_US


def read_runs(roots: Sequence[Path]) -> tuple[tuple[ComparedRun, ...], list[str]]:
    """The runs that have frames, and sentences about what was left out."""
    read, notes = [], []
    for name, root in zip(name_runs(roots), roots, strict=True):
        layout = RunLayout(root)
        run = RunReader(layout).read(time.time())
        frames, left_out = read_frame_columns(layout, run)
        notes += [f"{name}: {sentence}" for sentence in (*run.notes, *left_out)]
        if len(frames):
            read.append(_describe_run(name, layout, run, frames))
        else:
            notes.append(f"{name}: left out: no segment of it is whole yet")
    if len(read) < 2:
        raise CompareError("\n".join([f"{len(read)} of {len(roots)} runs have frames: two are needed", *notes]))
    labels = label_arms([run.settings for run in read], [run.slots for run in read])
    runs = (replace(run, arm=label) for run, label in zip(read, labels, strict=True))
    # Controls first; beyond that arms and runs in the order that they were given in.
    order = {label: place for place, label in reversed(list(enumerate(labels)))}
    return tuple(sorted(runs, key=lambda run: (run.method != CONTROL, order[run.arm]))), notes


def name_runs(roots: Sequence[Path]) -> list[str]:
    """The ends of the paths that tell them apart."""
    parts = [root.resolve().parts for root in roots]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _describe_run(name: str, layout: RunLayout, run: RunState, frames: FrameColumns) -> ComparedRun:
    assert run.system is not None  # read_frame_columns has asked for it
    first = run.decisions[0].actions if run.decisions else ()
    return ComparedRun(
        name=name,
        layout=layout,
        settings=run.settings,
        system=run.system,
        arm="",
        slots=sum(action.kind == "start" for action in first),
        n_simulations=len(frames.rows_of),
        is_over=run.last is not None and run.last.next == "stop" and not run.launcher.is_alive,
        frames=frames,
    )


def get_method(settings: Settings) -> str:
    """What steers a campaign."""
    return settings.steering.method


def label_arms(settings: Sequence[Settings], slots: Sequence[int]) -> list[str]:
    """The label of each run's arm: its method and, where runs of one method differ in what matters, in what.

    Parameters
    ----------
    settings : sequence of Settings
    slots : sequence of int
        Simulations at a time.
    """
    methods = [get_method(one) for one in settings]
    labels = []
    for one, n_slots, method in zip(settings, slots, methods, strict=True):
        alike = [i for i, other in enumerate(methods) if other == method]
        no_matter = (*_NO_MATTER, *_NO_MATTER_TO_CONTROL) if method == CONTROL else _NO_MATTER
        differ = [
            f"{key} {_show(get_setting(one, key))}"
            for key in known_keys()
            if not key.startswith(no_matter) and len({_show(get_setting(settings[i], key)) for i in alike}) > 1
        ]
        differ += [f"{n_slots} slots"] if len({slots[i] for i in alike}) > 1 else []
        labels.append(f"{method} ({', '.join(differ)})" if differ else method)
    return labels


def get_setting(settings: Settings, key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


# What must be the same.


def check_same(runs: Sequence[ComparedRun]) -> None:
    """Refuse runs that did not simulate the same.

    Raises
    ------
    CompareError
        It names every key that differs, with its values.
    """
    keys: dict[str, Callable[[ComparedRun], Any]] = {key: partial(_get_of_run, key=key) for key in PHYSICS}
    if all(run.settings.system.model == "calpha" for run in runs):
        keys["system.reduced_temperature"] = partial(_get_of_run, key="system.reduced_temperature")
    keys |= {
        "sequence": lambda run: run.system.sequence,
        "force field": lambda run: run.system.force_field,
        "CA atoms of system/native.pdb (checksum)": _identify_native,
    }
    sentences = [
        f"{what}: {differing}" for what, read in keys.items() if (differing := tell_difference(runs, read)) is not None
    ]
    if sentences:
        told = "runs of another system or physics cannot be compared; they differ in"
        raise CompareError("\n".join([told, *sentences]))


def _get_of_run(run: ComparedRun, key: str) -> Any:
    return get_setting(run.settings, key)


def tell_difference(runs: Sequence[ComparedRun], read: Callable[[ComparedRun], Any]) -> str | None:
    """Which value is whose, where there are several."""
    whose: dict[str, list[str]] = {}
    for run in runs:
        whose.setdefault(_show(read(run)), []).append(run.name)
    return "; ".join(f"{value} in {', '.join(names)}" for value, names in whose.items()) if len(whose) > 1 else None


def _identify_native(run: ComparedRun) -> str:
    """The CA atoms that RMSD is measured against: hydrogens may be placed otherwise by another build."""
    if not run.system.has_native:
        return "none"
    try:
        lines = run.layout.native.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CompareError(f"{run.layout.native} cannot be read: {error}") from None
    atoms = [line[30:54] for line in lines if line.startswith("ATOM") and line[12:16].strip() == "CA"]
    return hashlib.sha256("\n".join(atoms).encode()).hexdigest()[:12]


def explain_no_rmsd(runs: Sequence[ComparedRun]) -> str:
    without = [run for run in runs if run.frames.rmsd_angstrom is None]
    if not any(run.system.has_native for run in without):
        return "there is no native structure"
    return f"some frames of {', '.join(run.name for run in without)} have no RMSD"


def find_target(runs: Sequence[ComparedRun], asked: float | None, is_needed: bool) -> float | None:
    """The RMSD that is to be reached, ångström: the one asked for, else that of all settings.

    Raises
    ------
    CompareError
        Their settings have several, or none although it is needed.
    """
    if asked is not None:
        return asked
    differing = tell_difference(runs, lambda run: run.settings.stop.target_rmsd_angstrom)
    if differing is not None:
        raise CompareError(f"stop.target_rmsd_angstrom is {differing}: give one for all with --target X (Å)")
    target = runs[0].settings.stop.target_rmsd_angstrom
    if target is None and is_needed:
        raise CompareError("the runs have no stop.target_rmsd_angstrom: give --target X (Å), or --states")
    return target


