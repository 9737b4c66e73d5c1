"""``entk-app check``: everything that keeps a campaign from running, found before a pilot is asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from entk_app.errors import EntkAppError, SettingsError
from entk_app.layout import RunLayout
from entk_app.machine import Machine, divide_machine
from entk_app.preflight import (
    Report,
    Size,
    Speed,
    Times,
    TrainingSpeed,
    check_scratch,
    compute_frame_bytes,
    compute_size,
    compute_times,
    count_bytes_in,
    find_free_bytes,
    note_friction,
    note_steering,
    say_bytes,
    say_remedy,
)
from entk_app.publish import check_local
from entk_app.records import SystemRecord, write_text
from entk_app.resources import LOCAL, Resource, check_presence, count_gpus, find_resource
from entk_app.run_folder import check_new_run_folder
from entk_app.settings import Settings, dump_yaml

Value = TypeVar("Value")


def check_campaign(settings: Settings, layout: RunLayout, folders: list[Path], is_resumed: bool = False) -> Report:
    """Try everything that a run would, but for the pilot; starts nothing, leaves nothing behind.

    Parameters
    ----------
    settings : Settings
    layout : RunLayout
        The run folder that the campaign would have, or has.
    folders : list of Path
        Where resource files are.
    is_resumed : bool
        Whether the campaign goes on in its run folder.
    """
    problems: list[str] = []
    notes: list[str] = []

    def attempt(ask: Callable[[], Value]) -> Value | None:
        try:
            return ask()
        except EntkAppError as error:
            problems.append(str(error))
            return None

    from entk_app.md import check_platform
    from entk_app.pilot import check_time_left, find_walltime
    from entk_app.workflow import check_environments

    if not is_resumed:
        attempt(lambda: check_new_run_folder(layout))
    attempt(lambda: check_scratch(settings.resource.scratch))
    attempt(lambda: check_environments(settings.resource.environments))
    resource = attempt(lambda: find_resource(settings.resource, folders))
    machine = attempt(lambda: _divide(settings, resource)) if resource is not None else None
    is_here = False
    if resource is not None:
        if resource.is_this_node:
            attempt(lambda: check_local(settings.resource.node_local_path))
        attempt(lambda: check_time_left(layout, settings, resource))
        if resource.label == LOCAL:
            attempt(lambda: check_platform(settings.simulate.platform))
        try:
            check_presence(resource)
            is_here = not resource.submit
            if resource.is_emulated:
                notes.append(
                    f"{resource.label} is emulated: all tasks share this machine's cores, each is slower than alone"
                )
        except SettingsError as error:
            # As a dry run: elsewhere, in its job, it may well run.
            notes.append(f"it would be refused here: {error}")
    with tempfile.TemporaryDirectory(prefix="entk-app-check-") as folder:
        probed = RunLayout(Path(folder))
        system = attempt(lambda: _build(settings, layout, probed, is_resumed))
        speed = training = size = None
        if system is not None and machine is not None:
            notes += [*note_steering(settings, system.has_native), *note_friction(settings)]
            speed, training, size = _measure(settings, system, machine, probed, notes, problems)
            if not is_here and (speed or training):
                notes.append("speeds are of this machine, not of the resource's")
    free, memory = find_free_bytes(layout.root), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    times = None
    if resource is not None and machine is not None:
        walltime = find_walltime(settings.resource)
        times = compute_times(settings, machine.slots, size, speed, training, walltime, resource.gpus)
        _judge_times(settings, times, training, notes, problems)
    if size is not None:
        _judge_room(layout, size, free, notes, problems)
        if is_here:
            _judge_memory(size, machine, memory, notes)
    return Report(
        problems=tuple(problems),
        notes=tuple(notes),
        name=system.name if system else None,
        model=system.model if system else None,
        solvent=system.solvent if system else None,
        n_residues=system.n_residues if system else None,
        n_atoms=system.n_atoms if system else None,
        has_native=system.has_native if system else None,
        frame_bytes=compute_frame_bytes(system) if system else None,
        resource=resource.label if resource else None,
        cores=resource.cores if resource else None,
        gpus=resource.gpus if resource else None,
        simulations=machine.slots.simulate if machine else None,
        trainings=machine.slots.learn if machine and settings.learns else None,
        platforms=_platforms(),
        gpus_here=count_gpus(),
        run_folder=str(layout.root),
        free_bytes=free,
        memory_bytes=memory,
        size=size,
        speed=speed,
        training=training,
        times=times,
    )


def _divide(settings: Settings, resource: Resource) -> Machine:
    required = settings.resource.require_gpu
    allow_cpu = resource.is_emulated if required is None else not required
    return divide_machine(settings, resource.cores, resource.gpus, resource.nodes, allow_cpu)


def _build(settings: Settings, layout: RunLayout, probed: RunLayout, is_resumed: bool) -> SystemRecord:
    """The system, in a folder that goes away: as it would be built, or as the run folder has it."""
    from entk_app.records import read_record
    from entk_app.systems import build_system, write_system

    write_text(probed.settings, dump_yaml(settings))
    if is_resumed:
        probed.system.symlink_to(layout.system, target_is_directory=True)
        return read_record(SystemRecord, probed.system_record)
    built = build_system(settings, cache=layout.root.parent / ".cache")
    write_system(built, probed)
    return built.record


def _measure(
    settings: Settings,
    system: SystemRecord,
    machine: Machine,
    probed: RunLayout,
    notes: list[str],
    problems: list[str],
) -> tuple[Speed | None, TrainingSpeed | None, Size | None]:
    """Speeds where the tasks' device is here, and the size that follows."""
    from entk_app.probe import ProbeError, ProbeTask, run_probe

    speed = training = None
    has_device = bool(count_gpus()) or machine.allow_cpu or not machine.gpus_per_task
    if not has_device:
        notes.append("speeds are not measured: a task would have a GPU, this machine has none")
    else:
        gpus = machine.gpus_per_task if count_gpus() else 0
        task = ProbeTask(cores=machine.simulation_cores(0), gpus=gpus, allow_cpu=machine.allow_cpu)
        try:
            speed = run_probe("simulate", probed, task, Speed)
            if gpus and machine.sims_per_gpu > 1:
                # At worst: what one leaves idle of the device is what sharing is for.
                speed = speed.model_copy(update={"ns_per_day": speed.ns_per_day / machine.sims_per_gpu})
                notes.append(
                    f"the speed is that of one simulation alone on its GPU, divided by resource.sims_per_gpu = "
                    f"{machine.sims_per_gpu}: those that share one are faster"
                )
        except ProbeError as error:
            problems.append(f"the simulation does not run here: {error}")
    frames = settings.frames_per_segment
    if frames is None and speed is not None and settings.simulate.segment_minutes is not None:
        ps = speed.ns_per_day * 1e3 * settings.simulate.segment_minutes / 1440.0
        frames = max(1, int(ps / settings.simulate.report_interval_ps))
    if frames is None:
        notes.append(
            "how many frames simulate.segment_minutes makes is not known without a speed: no size can be told but that "
            f"of a frame, {compute_frame_bytes(system):,} bytes"
        )
        return speed, None, None
    size = compute_size(settings, machine.slots, system, frames)
    if has_device and settings.learns:
        task = ProbeTask(
            cores=machine.training_cores(0), gpus=gpus, allow_cpu=machine.allow_cpu, n_frames=size.n_frames
        )
        try:
            training = run_probe("train", probed, task, TrainingSpeed)
            size = compute_size(settings, machine.slots, system, frames, training.n_parameters)
        except ProbeError as error:
            notes.append(f"training is not measured: {error}")
    return speed, training, size


def _judge_times(
    settings: Settings, times: Times, training: TrainingSpeed | None, notes: list[str], problems: list[str]
) -> None:
    walltime = times.walltime or 0.0
    if times.training is not None and times.training > walltime:
        # The estimate is of the last iteration with all its epochs.
        text = f"the last trainings may take {say_minutes(times.training)}, the walltime is {say_minutes(walltime)}"
        how = "lower train.epochs or train.max_frames, or raise resource.walltime_min"
        if settings.train.patience is None:
            problems.append(f"{text}, and a training that is cut off starts again: {how}")
        else:
            notes.append(f"{text}, unless train.patience ends them before: {how}")
    elif times.n_in_walltime == 0:
        notes.append(
            f"an iteration takes {say_minutes(times.iteration)}, the walltime is {say_minutes(walltime)}: it is cut "
            "off and goes on with --resume"
        )
    budget = settings.stop.budget_gpu_hours
    if budget is not None and times.gpu_hours is not None and times.gpu_hours > budget:
        notes.append(
            f"all iterations take {times.gpu_hours:.3g} GPU-hours, stop.budget_gpu_hours = {budget:g} ends them before"
        )


def _judge_room(layout: RunLayout, size: Size, free: int | None, notes: list[str], problems: list[str]) -> None:
    if free is None:
        return
    needed = size.total_bytes - count_bytes_in(layout.root)
    if free < size.iteration_bytes:
        problems.append(
            f"the disk of {layout.root} has {say_bytes(free)} free, an iteration needs "
            f"{say_bytes(size.iteration_bytes)}: {say_remedy(layout)}"
        )
    elif free < needed:
        notes.append(
            f"the disk of {layout.root} has {say_bytes(free)} free, the whole campaign may need {say_bytes(needed)}"
        )


def _judge_memory(size: Size, machine: Machine | None, memory: int, notes: list[str]) -> None:
    trainings = machine.slots.learn if machine else 1
    for what, needed in (
        (f"{trainings} trainings at a time", trainings * size.training_memory),
        ("an analysis", size.analysis_memory),
    ):
        if needed > memory:
            notes.append(
                f"{what} may need {say_bytes(needed)} of memory, this machine has {say_bytes(memory)}: lower "
                "train.max_frames, train.batch_size or resource.ml_slots"
            )


def _platforms() -> tuple[str, ...]:
    import openmm

    return tuple(openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms()))


def say_minutes(minutes: float | None) -> str:
    """Minutes for people."""
    if minutes is None:
        return "not known"
    if minutes < 1:
        return f"{60 * minutes:.2g} s"
    return f"{minutes:.3g} min" if minutes < 600 else f"{minutes / 60:.3g} h"


def _say_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _and_trainings(report: Report) -> str:
    return f" and {report.trainings} trainings" if report.trainings else ""


def render_report(report: Report) -> list[str]:
    """The report as lines of plain text."""
    native = "native structure known" if report.has_native else "no native structure"
    solvent = " in explicit solvent" if report.solvent == "explicit" else ""
    rows = [
        (
            "system",
            f"{report.name}, {report.model}{solvent}, {report.n_residues} residues, {report.n_atoms} particles; "
            + native
            if report.name
            else "cannot be built",
        ),
        (
            "resource",
            f"{report.resource}: {report.cores} cores, {report.gpus} GPUs"
            + (
                f"; {report.simulations} simulations{_and_trainings(report)} at a time"
                if report.simulations
                else ""
            )
            if report.resource
            else "cannot be had",
        ),
        ("here", f"OpenMM platforms {', '.join(report.platforms)}; {report.gpus_here or 'no'} GPUs"),
        ("simulation", _say_speed(report)),
        ("training", _say_training(report)),
        *_say_times(report),
        *_say_size(report),
    ]
    lines = [f"{title:11} {text}" for title, text in rows]
    lines += [f"note: {text}" for text in report.notes]
    lines += [f"problem: {text}" for text in report.problems]
    count = len(report.problems)
    verdict = f"it cannot run: {count} problem{'s' if count > 1 else ''}" if count else "nothing keeps it from running"
    lines.append(verdict)
    return lines


def _say_speed(report: Report) -> str:
    if report.speed is None:
        return "not measured"
    speed, segment = report.speed, report.times.segment if report.times else None
    return (
        f"{_say_number(speed.ns_per_day)} ns a day on {speed.platform}, cores: {speed.cores}; one alone, for "
        f"{speed.seconds:.2g} s; a segment takes {say_minutes(segment)}"
    )


def _say_training(report: Report) -> str:
    if report.training is None:
        return "not measured"
    frames = 1e5 * report.training.seconds_per_frame / 60.0
    longest = report.times.training if report.times else None
    return (
        f"an epoch of 100,000 frames takes {say_minutes(frames)} on the {report.training.platform}, cores: "
        f"{report.training.cores}; all models of the last iteration, every epoch: {say_minutes(longest)}"
    )


def _say_times(report: Report) -> list[tuple[str, str]]:
    times = report.times
    if times is None or times.iteration is None:
        return [("time", f"not known; the walltime is {say_minutes(times.walltime)}")] if times else []
    total = f"the whole campaign at most {say_minutes(60 * (times.campaign_hours or 0.0))}"
    gpu = "" if times.gpu_hours is None else f", {times.gpu_hours:.3g} GPU-hours"
    return [
        (
            "time",
            f"an iteration at most {say_minutes(times.iteration)}, {times.n_in_walltime} in the walltime of "
            f"{say_minutes(times.walltime)}; {total}{gpu}; start-up and analysis not counted",
        )
    ]


def _say_size(report: Report) -> list[tuple[str, str]]:
    size = report.size
    if size is None:
        return []
    free = "?" if report.free_bytes is None else say_bytes(report.free_bytes)
    models = "" if report.training else ", without models"
    return [
        (
            "campaign",
            f"at most {size.n_iterations} iterations ({size.limit}), {size.n_segments} segments of "
            f"{size.frames_per_segment} frames: {size.n_frames:,} frames",
        ),
        (
            "disk",
            f"at most {say_bytes(size.total_bytes)}{models} ({say_bytes(size.segment_bytes)} a segment, "
            f"{report.frame_bytes:,} bytes a frame); {free} free for {report.run_folder}",
        ),
        (
            "memory",
            f"a training about {say_bytes(size.training_memory)}, an analysis {say_bytes(size.analysis_memory)} at the "
            f"end; {say_bytes(report.memory_bytes or 0)} here",
        ),
    ]
