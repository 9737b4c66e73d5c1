"""Speeds measured in a process of its own: a few seconds of the real system's dynamics, two epochs of a model.

``python -m entk_app.probe KIND FOLDER`` reads FOLDER's system, settings and order and writes ``result.json``. A process
of its own can be ended, and takes its device and threads as a task would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from entk_app.errors import EntkAppError
from entk_app.layout import RunLayout
from entk_app.preflight import Speed, TrainingSpeed, choose_batch, count_training_frames
from entk_app.records import Record, read_record, write_record
from entk_app.settings import build_settings, read_config

ResultType = TypeVar("ResultType", bound=Record)

#: Seconds that each measurement may take with all that comes before it; longer ones are given up.
_TIMEOUT_S = 90.0

#: Batches of the second epoch, which is measured: the first compiles.
_BATCHES = 2


class ProbeError(EntkAppError):
    """A speed could not be measured here."""


class ProbeTask(Record):
    """The order to a probe: the devices that a task would have, and how much to measure."""

    cores: int
    gpus: int
    allow_cpu: bool
    seconds: float = 5.0
    n_frames: int = 1


def run_probe(
    kind: Literal["simulate", "train"], layout: RunLayout, task: ProbeTask, result: type[ResultType]
) -> ResultType:
    """Measure in a process of its own.

    Parameters
    ----------
    kind : {'simulate', 'train'}
    layout : RunLayout
        A folder with settings and system in it, not the campaign's.
    task : ProbeTask
    result : type
        :class:`Speed` or :class:`TrainingSpeed`.

    Raises
    ------
    ProbeError
        It takes too long, or fails; the message has its last line.
    """
    write_record(layout.root / "probe.json", task)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(task.cores))
    devices = {} if task.gpus else dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "")
    command = [sys.executable, "-m", "entk_app.probe", kind, str(layout.root)]
    parent = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **threads, **devices, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"it takes longer than {_TIMEOUT_S:g} s here") from None
    if done.returncode:
        raise ProbeError((done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1][:300])
    return read_record(result, layout.root / "result.json")


def measure_simulation(layout: RunLayout, task: ProbeTask) -> Speed:
    """ns a day of the system, from its start structure as the first segment takes it."""
    from openmm import unit

    from entk_app import md
    from entk_app.systems.build import load_system

    settings = build_settings(read_config(layout.settings)).simulate
    loaded = load_system(layout)
    simulation, platform = md.create_context(
        loaded.topology, loaded.system, settings, 1, task.cores, task.gpus, task.allow_cpu
    )
    simulation.context.setPositions(loaded.start * 0.1)
    simulation.minimizeEnergy(
        tolerance=settings.minimise_tolerance_kj_per_mol_nm * unit.kilojoules_per_mole / unit.nanometer,
        maxIterations=settings.minimise_max_iterations,
    )
    simulation.context.setVelocitiesToTemperature(settings.temperature_k * unit.kelvin, 1)
    # The first steps choose and compile kernels.
    simulation.step(10)
    steps, piece, began = 0, 10, time.monotonic()
    while (seconds := time.monotonic() - began) < task.seconds:
        simulation.step(piece)
        steps += piece
        piece = max(1, min(10_000, int(piece * 0.5 / max(time.monotonic() - began - seconds, 1e-3))))
    energy = simulation.context.getState(energy=True).getPotentialEnergy()._value
    if not np.isfinite(energy):
        raise ProbeError(f"after {steps} steps its energy is {energy}")
    ns = steps * settings.time_step_fs * 1e-6
    return Speed(platform=platform, cores=task.cores, ns_per_day=ns / seconds * 86_400, seconds=seconds)


def measure_training(layout: RunLayout, task: ProbeTask) -> TrainingSpeed:
    """Seconds a frame and epoch of the largest model, on random maps, in batches as large as the campaign's."""
    from entk_app import cvae, geometry
    from entk_app.records import SystemRecord

    campaign = build_settings(read_config(layout.settings))
    n_residues = read_record(SystemRecord, layout.system_record).n_residues
    platform = cvae.configure(task.cores, 1, task.gpus, task.allow_cpu)
    dims = campaign.train.latent_dims
    counts = tuple(cvae.build_model(campaign.train.architecture, n_residues, dim).n_parameters for dim in dims)
    batch = choose_batch(campaign, count_training_frames(campaign, task.n_frames))
    n_train = _BATCHES * batch
    packed = np.random.default_rng(1).integers(0, 256, (n_train + 1, geometry.count_bytes(n_residues)), dtype=np.uint8)
    settings = campaign.train.model_copy(update={"epochs": 2, "patience": None, "batch_size": batch})
    rows = np.arange(n_train)
    speedups = cvae.choose_speedups(platform, settings.precision, cvae.find_capability())
    held_out = np.array([n_train])
    training = cvae.train_model(packed, n_residues, rows, held_out, settings, max(dims), speedups=speedups)
    seconds = training.history[-1].seconds / n_train
    return TrainingSpeed(platform=platform, cores=task.cores, n_parameters=counts, seconds_per_frame=seconds)


def main(arguments: list[str]) -> int:
    kind, folder = arguments
    layout = RunLayout(Path(folder))
    task = read_record(ProbeTask, layout.root / "probe.json")
    measure = measure_simulation if kind == "simulate" else measure_training
    write_record(layout.root / "result.json", measure(layout, task))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
