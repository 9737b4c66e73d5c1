"""Molecular dynamics of one segment with OpenMM: platform, context, reporters. Lengths in ångström outside OpenMM."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from entk_app import geometry
from entk_app.errors import BlewUpError, EntkAppError, Interrupted
from entk_app.frames import FrameWriter
from entk_app.records import EndedBy
from entk_app.settings import SimulateSettings

logger = logging.getLogger(__name__)

#: Fastest first. On a CPU, systems of few particles run faster on the Reference platform, which has no threads to
#: keep together (see docs/decisions).
_GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
_SMALL_SYSTEM = 100

#: Steps before the speed is known: a request to stop is looked for between pieces of about a second.
_FIRST_PIECE = 100

ComputeScore = Callable[[NDArray[np.float64]], float]

#: Columns of the state log.
_LOGGED = ("step", "time", "potentialEnergy", "kineticEnergy", "totalEnergy", "temperature", "speed")

#: A kinetic temperature so many times the thermostat's is no fluctuation: even three particles stay below it.
_HOT = 10.0


class PlatformError(EntkAppError):
    """No OpenMM platform that was asked for can make a context here."""

    exit_code = 2


@dataclass(frozen=True)
class Start:
    """What a segment starts from: exactly one of a saved state or positions.

    Attributes
    ----------
    state_xml : str or None
        Serialized State of the segment before: positions, velocities, time and step go on as they were.
    positions : array, shape (n_atoms, 3), ångström, or None
        Positions that get fresh velocities.
    box : array, shape (3, 3), ångström, or None
        Of a periodic system: the box that the positions are of; None: that of the system.
    minimise : bool
        Minimise the positions first: the first segment from the initial structure.
    """

    state_xml: str | None = None
    positions: NDArray[np.floating] | None = None
    box: NDArray[np.floating] | None = None
    minimise: bool = False


@dataclass(frozen=True)
class SegmentResult:
    """What one segment was."""

    n_frames: int
    steps: int
    first_step: int
    start_time_ps: float
    time_ps: float
    ended_by: EndedBy
    seconds_md: float
    seconds_writing: float
    min_rmsd: float | None
    min_rmsd_frame: int | None
    last_rmsd: float | None
    best_score: float | None = None
    best_score_frame: int | None = None

    @property
    def ns_per_day(self) -> float:
        return self.time_ps * 1e-3 / self.seconds_md * 86_400 if self.seconds_md > 0 else 0.0


class FrameReporter:
    """OpenMM reporter of contact maps and order parameters: hands every frame's CA atoms to a FrameWriter.

    Parameters
    ----------
    writer : FrameWriter
    ca_indices : tuple of int
    interval : int
        Steps from frame to frame.
    max_kinetic : float
        Kinetic energy, kJ/mol, above which the simulation has blown up.
    chains : tuple of (int, int)
        Of a periodic system: first atom of each chain and the one after its last. The protein is made whole by them.
    compute_score : callable or None
        Score of positions of shape (n_atoms, 3), ångström.
    """

    def __init__(
        self,
        writer: FrameWriter,
        ca_indices: tuple[int, ...],
        interval: int,
        max_kinetic: float = math.inf,
        chains: tuple[tuple[int, int], ...] = (),
        compute_score: ComputeScore | None = None,
    ) -> None:
        self._writer = writer
        self._ca = np.asarray(ca_indices)
        self._chains = chains or None
        self._ca_chains = geometry.number_chains(self._ca, chains)
        self._interval = interval
        self._max_kinetic = max_kinetic
        self._compute_score = compute_score

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": False, "include": ["positions", "energy"]}

    def report(self, simulation: Any, state: Any) -> None:
        kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoules_per_mole)
        if not kinetic <= self._max_kinetic:
            raise BlewUpError(
                f"step {simulation.currentStep}: the kinetic energy is {kinetic:.4g} kJ/mol, more than {_HOT:g} times "
                "what the thermostat keeps"
            )
        positions = to_trajectory_precision(state.getPositions(asNumpy=True)._value)
        ca = positions[self._ca]
        if self._chains is not None:
            box = 10.0 * state.getPeriodicBoxVectors(asNumpy=True)._value
            ca = geometry.make_whole(ca, box, self._ca_chains)
            positions = geometry.join_chains(positions, box, self._ca, self._chains)
        score = None if self._compute_score is None else self._compute_score(positions)
        time_ps = state.getTime().value_in_unit(unit.picosecond)
        self._writer.add(simulation.currentStep, time_ps, ca, score)


class _TimedReporter:
    """A reporter whose reports are timed: ``seconds`` in all."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.seconds = 0.0

    def describeNextReport(self, simulation: Any) -> Any:
        return self._inner.describeNextReport(simulation)

    def report(self, simulation: Any, state: Any) -> None:
        began = time.monotonic()
        self._inner.report(simulation, state)
        self.seconds += time.monotonic() - began


def to_trajectory_precision(positions_nm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Positions in ångström as a DCD file will hold them, so that what is computed now can be recomputed from it."""
    return (10.0 * np.asarray(positions_nm, dtype=np.float64)).astype(np.float32).astype(np.float64)


def check_platform(name: str) -> None:
    """Refuse a platform that this machine's OpenMM does not have.

    Raises
    ------
    PlatformError
    """
    present = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if name != "auto" and name not in present:
        raise PlatformError(f"simulate.platform = '{name}': OpenMM has {', '.join(present)} here, or auto")


def create_context(
    topology: Any,
    system: Any,
    settings: SimulateSettings,
    seed: int,
    cores: int,
    gpus: int = 0,
    allow_cpu: bool = True,
) -> tuple[Any, str]:
    """An ``app.Simulation`` on the fastest platform present, and its platform's name.

    Parameters
    ----------
    topology, system : openmm.app.Topology, openmm.System
    settings : SimulateSettings
    seed : int
        Of the Langevin noise, and of the barostat's moves where there is one.
    cores : int
        Threads on the CPU platform.
    gpus : int
        Devices that the task was given; without one ``auto`` takes no GPU platform.
    allow_cpu : bool
        Whether ``auto`` may fall back to the CPU although a device was given.

    Raises
    ------
    PlatformError
        No platform can run it, or the one asked for is not there.
    """
    present = {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}
    order: tuple[str, ...]
    if settings.platform == "auto":
        on_cpu = ("Reference", "CPU") if system.getNumParticles() < _SMALL_SYSTEM else ("CPU", "Reference")
        order = on_cpu if not gpus else (*_GPU_PLATFORMS, *on_cpu) if allow_cpu else _GPU_PLATFORMS
    else:
        order = (settings.platform,)
    _seed_barostat(system, seed)
    reasons = []
    for name in order:
        if name not in present:
            reasons.append(f"{name}: not installed")
            continue
        integrator = openmm.LangevinMiddleIntegrator(
            settings.temperature_k * unit.kelvin,
            settings.friction_per_ps / unit.picosecond,
            settings.time_step_fs * unit.femtosecond,
        )
        integrator.setRandomNumberSeed(seed)
        properties = {}
        if name == "CPU":
            properties["Threads"] = str(cores)
        elif name in _GPU_PLATFORMS:
            # The task sees its own device only: it is number 0 here.
            properties = {"DeviceIndex": "0", "Precision": "mixed"}
        try:
            platform = openmm.Platform.getPlatformByName(name)
            simulation = app.Simulation(topology, system, integrator, platform, properties)
        except openmm.OpenMMException as error:
            reasons.append(f"{name}: {error}")
            continue
        return simulation, name
    hint = ". A simulation that was given a GPU does not fall back to the CPU unless resource.require_gpu=false"
    raise PlatformError(
        f"simulate.platform = '{settings.platform}' cannot run here: "
        + "; ".join(reasons)
        + (hint if gpus and not allow_cpu else "")
    )


def run_segment(
    simulation: Any,
    settings: SimulateSettings,
    folder: Path,
    make_writer: Callable[[NDArray[np.floating]], FrameWriter],
    ca_indices: tuple[int, ...],
    n_frames: int | None,
    minutes: float | None,
    save_minutes: float,
    *,
    names: tuple[str, str, str],
    chains: tuple[tuple[int, int], ...] = (),
    compute_score: ComputeScore | None = None,
    should_stop: Callable[[], EndedBy | None] = lambda: None,
    on_frame: Callable[[FrameWriter, float], None] = lambda writer, speed: None,
) -> SegmentResult:
    """Simulate one segment on from where the context is, and write trajectory, log, frames and State into ``folder``.

    Parameters
    ----------
    simulation : openmm.app.Simulation
        From :func:`create_context`, at a whole frame: after :func:`begin`, or after a segment.
    folder : Path
        Existing folder to write to.
    make_writer : callable
        Makes the frame writer from the start positions, shape (n_atoms, 3), ångström.
    n_frames : int or None
        Length of the segment at most; None: until ``minutes`` are over.
    minutes : float or None
        Length of the segment at most, in wall clock.
    save_minutes : float
        The segment ends after so long all the same, for the next to go on: what it has is then safe.
    names : (trajectory, log, state)
        File names.
    chains : tuple of (int, int)
        Of a periodic system: first atom of each chain of the protein and the one after its last.
    compute_score : callable or None
        Score of a frame's positions, shape (n_atoms, 3), ångström.
    should_stop : callable
        Asked about every second; a reason ends the segment in order, with its last whole frame.
    on_frame : callable
        Told of every frame: the writer, and ns a day so far.

    Raises
    ------
    BlewUpError
        Coordinates or energies are no numbers, or far above the thermostat's.
    openmm.OpenMMException
        The platform failed.
    Interrupted
        It was asked to stop before its first frame.
    ScoreError
        The score of a frame is no number.
    """
    context, interval = simulation.context, round(settings.report_interval_ps * 1000.0 / settings.time_step_fs)
    whole, whole_step = context.getState(positions=True), simulation.currentStep
    first_step, start_time_ps = whole_step, whole.getTime().value_in_unit(unit.picosecond)
    writer = make_writer(whole.getPositions(asNumpy=True).value_in_unit(unit.angstrom))
    trajectory, log, state_file = (folder / name for name in names)
    max_kinetic = _HOT * _mean_kinetic(simulation.system, settings.temperature_k)
    reporters = [
        # First: what has blown up is not to be written by the others.
        _TimedReporter(FrameReporter(writer, ca_indices, interval, max_kinetic, chains, compute_score)),
        # Not wrapped into the box, which would break molecules; a periodic box is in each frame.
        _TimedReporter(app.DCDReporter(str(trajectory), interval, enforcePeriodicBox=False)),
        _TimedReporter(app.StateDataReporter(str(log), interval, **dict.fromkeys(_LOGGED, True))),
    ]
    simulation.reporters = list(reporters)
    began = time.monotonic()
    ended_by: EndedBy | None = None
    while ended_by is None:
        ended_by = _step_to_next_frame(simulation, interval, should_stop)
        if ended_by is not None:
            # Between two frames: the segment ends with the last whole one.
            break
        whole, whole_step = context.getState(positions=True, velocities=True, parameters=True), simulation.currentStep
        seconds = time.monotonic() - began
        on_frame(writer, writer.n_frames * settings.report_interval_ps * 1e-3 / max(seconds, 1e-9) * 86_400)
        if n_frames is not None and writer.n_frames >= n_frames:
            ended_by = "length"
        elif minutes is not None and seconds >= minutes * 60.0:
            ended_by = "clock"
        elif seconds >= save_minutes * 60.0:
            ended_by = "save"
        else:
            ended_by = should_stop()
    seconds = time.monotonic() - began
    seconds_writing = sum(reporter.seconds for reporter in reporters)
    # The reporters close their files when they go.
    simulation.reporters = []
    del reporters
    if not writer.n_frames:
        raise Interrupted(f"ended by {ended_by} before the first frame: there is nothing to keep")
    writer.flush()
    state_file.write_text(openmm.XmlSerializer.serialize(whole), encoding="utf-8")
    steps = whole_step - first_step
    return SegmentResult(
        n_frames=writer.n_frames,
        steps=steps,
        first_step=first_step,
        start_time_ps=start_time_ps,
        time_ps=steps * settings.time_step_fs * 1e-3,
        ended_by=ended_by,
        seconds_md=seconds,
        seconds_writing=seconds_writing,
        min_rmsd=writer.min_rmsd,
        min_rmsd_frame=writer.min_rmsd_frame,
        last_rmsd=writer.last_rmsd,
        best_score=writer.best_score,
        best_score_frame=writer.best_score_frame,
    )


def begin(simulation: Any, start: Start, settings: SimulateSettings, seed: int) -> None:
    """Put the context where a simulation starts or goes on; ``seed`` is that of fresh velocities."""
    context = simulation.context
    if start.state_xml is not None:
        context.setState(openmm.XmlSerializer.deserialize(start.state_xml))
        return
    if start.box is not None:
        context.setPeriodicBoxVectors(*(start.box * 0.1))
    context.setPositions(np.asarray(start.positions) * 0.1)
    if start.minimise:
        simulation.minimizeEnergy(
            tolerance=settings.minimise_tolerance_kj_per_mol_nm * unit.kilojoules_per_mole / unit.nanometer,
            maxIterations=settings.minimise_max_iterations,
        )
    context.setVelocitiesToTemperature(settings.temperature_k * unit.kelvin, seed)


def get_box(simulation: Any) -> NDArray[np.float64]:
    """Vectors of the periodic box as it is now, by row, shape (3, 3), ångström."""
    box: NDArray[np.float64] = 10.0 * simulation.context.getState().getPeriodicBoxVectors(asNumpy=True)._value
    return box


def _step_to_next_frame(
    simulation: Any, interval: int, should_stop: Callable[[], EndedBy | None]
) -> EndedBy | None:
    """Step to the next report in pieces of about a second; a reason to stop ends it between two pieces."""
    left, piece = interval, min(interval, _FIRST_PIECE)
    while left:
        began = time.monotonic()
        try:
            simulation.step(min(piece, left))
        except (openmm.OpenMMException, ValueError) as error:
            # OpenMM and its reporters each have their own words for it.
            if any(word in str(error) for word in ("NaN", "infinite")):
                raise BlewUpError(f"step {simulation.currentStep}: {error}") from None
            raise
        left -= min(piece, left)
        if left and (reason := should_stop()) is not None:
            return reason
        piece = max(_FIRST_PIECE, min(interval, int(piece / max(time.monotonic() - began, 1e-6))))
    return None


def _seed_barostat(system: Any, seed: int) -> None:
    """Give a barostat random numbers of its own: a part of the context that is made next."""
    for force in system.getForces():
        if isinstance(force, openmm.MonteCarloBarostat):
            # Not the thermostat's; 0 would be a seed from the clock.
            force.setRandomNumberSeed(int(np.random.SeedSequence((seed, 1)).generate_state(1)[0] >> 1) or 1)


def _mean_kinetic(system: Any, temperature_k: float) -> float:
    """Mean kinetic energy, kJ/mol, of a system at a temperature: half kT a degree of freedom."""
    massive = sum(system.getParticleMass(i).value_in_unit(unit.dalton) > 0 for i in range(system.getNumParticles()))
    freedom = max(1, 3 * massive - system.getNumConstraints())
    return 0.5 * freedom * (unit.MOLAR_GAS_CONSTANT_R * temperature_k * unit.kelvin).value_in_unit(
        unit.kilojoules_per_mole
    )
