"""What a campaign would do: the pilot, the placement of each kind of task, the command lines. Starts nothing."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from entk_app.campaign import TaskSpec
from entk_app.layout import RunLayout, analyse_task_name, simulate_task_name, train_task_name
from entk_app.machine import Machine
from entk_app.pilot import describe_resource
from entk_app.pilot_log import find_walltime
from entk_app.resources import Resource
from entk_app.settings import Settings
from entk_app.workflow import build_command, build_environment, build_pre_exec, find_python


def describe_plan(settings: Settings, resource: Resource, machine: Machine, layout: RunLayout) -> list[str]:
    """Lines that tell the pilot, the placement of every task kind and the command lines of one task of each."""
    slots = machine.slots
    how = "queued as a batch job" if resource.submit else "on the nodes that this process runs on"
    description = describe_resource(settings.resource, resource)
    lines = [
        f"resource   {resource.label}: {resource.entry.get('description', '')}",
        f"           {resource.source}",
        f"pilot      {resource.nodes} x {resource.node_cores} cores, {resource.node_gpus} GPUs, "
        f"{find_walltime(settings.resource):.4g} min; {how}; {resource.manager} and {resource.launcher}"
        + ("; emulated: devices are counted only" if resource.is_emulated else ""),
        "           " + ", ".join(f"{key}={value}" for key, value in description.items()),
        "slots      " + _describe_slots(machine, settings.learns),
        "placement  " + " ".join(f"{title:>{width}}" for title, width in _COLUMNS),
    ]
    examples = _example_tasks(settings, machine, layout)
    n_models = len(settings.train.latent_dims) if settings.learns else 0
    n_trainings, part, whole = min(slots.learn, n_models), machine.gpus_per_simulation, machine.gpus_per_task
    simulating = [machine.simulation_cores(i) for i in range(slots.simulate)]
    rows: list[tuple[str, int, list[int], float, str]] = [
        ("simulate", slots.simulate, simulating, part, "a simulation"),
        ("train", n_trainings, [machine.training_cores(i) for i in range(slots.learn)], whole, "a latent size"),
        ("analyse", int(not settings.is_control), [machine.analysis_cores], whole, "an iteration"),
    ]
    if slots.total > slots.simulate:
        first = [machine.simulation_cores(i) for i in range(slots.total)]
        rows.insert(0, ("simulate", slots.total, first, part, "a simulation, iteration 1"))
    for kind, count, cores, gpus, what in rows:
        if not count:
            continue
        values = (kind, str(count), _range(cores), str(sum(cores)), f"{gpus:.3g}")
        padded = " ".join(f"{value:>{width}}" for value, (_, width) in zip(values, _COLUMNS, strict=True))
        lines.append(f"           {padded}  each {what}")
    kinds = {kind for kind, count, *_ in rows if count}
    for task in (task for task in examples if task.kind in kinds):
        lines += _describe_task(task, settings, resource, layout)
    return lines


_COLUMNS = (("task", 9), ("at a time", 9), ("cores each", 10), ("cores", 6), ("GPUs each", 9))


def _describe_slots(machine: Machine, learns: bool) -> str:
    slots = machine.slots
    shared = f"; {machine.sims_per_gpu} simulations share a GPU" if machine.sims_per_gpu > 1 else ""
    if slots.is_split:
        beside = f"{slots.learn} trainings" if learns else "an analysis"
        return (
            f"{slots.total} simulations in iteration 1, then {slots.simulate} simulations and {beside} "
            f"beside one another{shared}"
        )
    how = "which simulations and trainings use in turn" if learns else "for simulations"
    return f"{slots.total}, {how}{shared}"


def _range(values: list[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def _example_tasks(settings: Settings, machine: Machine, layout: RunLayout) -> list[TaskSpec]:
    latent_dim, part, whole = settings.train.latent_dims[0], machine.gpus_per_simulation, machine.gpus_per_task
    cores = machine.simulation_cores(0), machine.training_cores(0), machine.analysis_cores
    return [
        TaskSpec("simulate", simulate_task_name(1, 0, 0), layout.segment(0, 0).task, cores[0], part),
        TaskSpec("train", train_task_name(1, latent_dim), layout.model(1, latent_dim).task, cores[1], whole),
        TaskSpec("analyse", analyse_task_name(1), layout.analysis_task(1), cores[2], whole),
    ]


def _describe_task(task: TaskSpec, settings: Settings, resource: Resource, layout: RunLayout) -> list[str]:
    prefix = Path(sys.prefix) / "bin" / Path(sys.executable).name
    python = find_python(settings.resource.environments, task.kind, prefix)
    variables = build_environment(os.environ, task, layout.radical / "home", resource)
    return [
        f"{task.kind:10} {shlex.join(build_command(task, layout.root, task.order, python))}",
        "           before it: " + "; ".join(build_pre_exec(settings.resource.pre_exec)),
        "           with: " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
    ]
