"""What can be known of a campaign before its pilot: whether it is refused, how fast it is, and the room that it needs.

The sizes are computed from the formats: a frame of a trajectory, of ``frames.h5``, of the latent coordinates. Speeds
are measured (:mod:`entk_app.probe`) where the device that a task would take is here. ``run`` asks the cheap questions
itself.
"""

from __future__ import annotations

import math
import shlex
import shutil
import tempfile
from pathlib import Path

from pydantic import computed_field

from entk_app import geometry
from entk_app.errors import RunFolderError
from entk_app.layout import RunLayout
from entk_app.records import Record, SystemRecord
from entk_app.run_folder import find_existing
from entk_app.scores import explain_unused
from entk_app.settings import Settings
from entk_app.steering import Slots

#: DCD: three axes of 4-byte numbers between two 4-byte record lengths each, behind a header.
_DCD_HEADER = 276
_DCD_RECORDS = 24
#: Of a periodic system: six numbers of 8 bytes before each frame, between two record lengths.
_DCD_BOX = 56

#: ``frames.h5``: chunks of so many frames are written whole; columns of 8 bytes, two more with a native structure.
_H5_CHUNK = 1024
_H5_COLUMNS = 3
_H5_NATIVE_COLUMNS = 2
_H5_OVERHEAD = 21_400

#: Of text files, as measured: a row of log.csv, an atom of state.xml, a line of start.pdb; records beside them.
_LOG_ROW = 115
_STATE_ATOM = 170
_PDB_LINE = 81
_RECORDS = 8_000

#: Of a model's two files beside its weights, and of a segment in a file of latent coordinates.
_MODEL_OVERHEAD = 80_000
_EMBEDDING_OVERHEAD = 1_500

#: What radical and the logs take: at all, and of each task.
_RADICAL = 3_000_000
_RADICAL_TASK = 40_000

#: TensorFlow with nothing in it, and copies of the packed maps that a model is trained on.
_TENSORFLOW = 900_000_000
_TRAINING_COPIES = 5
_SHUFFLED_FRAME = 300

#: In explicit solvent the thermostat needs no more.
_FRICTION_IN_WATER = 10.0

#: Frames that are unpacked at a time, layers of feature maps that are alive while they are encoded.
_ENCODE_BATCH = 1024


class Size(Record):
    """How large the campaign can become until its limits end it.

    Attributes
    ----------
    n_iterations, n_segments, n_frames : int
        At most.
    n_trainings : int
        Iterations in which models train, as far as the growth of the frames decides.
    frames_per_segment : int
    limit : str
        Which setting bounds it.
    segment_bytes, iteration_bytes, total_bytes : int
        A segment; all of the first iteration; the whole campaign.
    training_memory, analysis_memory : int
        Bytes of the largest task of each kind, estimated.
    """

    n_iterations: int
    n_trainings: int
    n_segments: int
    n_frames: int
    frames_per_segment: int
    limit: str
    segment_bytes: int
    iteration_bytes: int
    total_bytes: int
    training_memory: int
    analysis_memory: int


class Speed(Record):
    """Molecular dynamics as measured here."""

    platform: str
    cores: int
    ns_per_day: float
    seconds: float


class TrainingSpeed(Record):
    """An epoch as measured here: on maps of the right size, of the first and of the largest training."""

    platform: str
    cores: int
    n_parameters: tuple[int, ...]
    seconds_per_frame: float


class Times(Record):
    """Minutes, estimated from what was measured; None where it was not.

    Attributes
    ----------
    segment, training : float or None
        One segment; all trainings of the last iteration, with all epochs.
    iteration, walltime : float or None
        The longest iteration; the pilot's.
    n_in_walltime : int or None
        Iterations that one pilot has time for.
    campaign_hours, gpu_hours : float or None
        Of all iterations, and what is simulated before the first.
    """

    segment: float | None = None
    training: float | None = None
    iteration: float | None = None
    walltime: float | None = None
    n_in_walltime: int | None = None
    campaign_hours: float | None = None
    gpu_hours: float | None = None


class Report(Record):
    """All that a check found; ``problems`` keep the campaign from running, ``notes`` do not."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    name: str | None = None
    model: str | None = None
    solvent: str | None = None
    n_residues: int | None = None
    n_atoms: int | None = None
    has_native: bool | None = None
    frame_bytes: int | None = None
    resource: str | None = None
    cores: int | None = None
    gpus: int | None = None
    simulations: int | None = None
    trainings: int | None = None
    platforms: tuple[str, ...] = ()
    gpus_here: int = 0
    run_folder: str | None = None
    free_bytes: int | None = None
    memory_bytes: int | None = None
    size: Size | None = None
    speed: Speed | None = None
    training: TrainingSpeed | None = None
    times: Times | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        return not self.problems


def check_scratch(scratch: Path | None) -> None:
    """Refuse a scratch folder that radical could not write to; makes nothing.

    Parameters
    ----------
    scratch : Path or None
        ``resource.scratch``. It may be missing, the folder that it is to be made in may not.

    Raises
    ------
    RunFolderError
    """
    if scratch is None:
        return
    key = f"resource.scratch = {str(scratch)[:200]!r}"
    if shlex.quote(str(scratch)) != str(scratch):
        raise RunFolderError(f"{key}: RADICAL-Pilot's scripts take no spaces, quotes or other signs in it; rename it")
    try:
        place = scratch if scratch.exists() else scratch.parent
        if not place.exists():
            raise RunFolderError(f"{key}: there is no folder {place}: make it first, or leave the setting out")
        if not place.is_dir():
            raise RunFolderError(f"{key}: {place} is not a folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFolderError(f"{key} cannot be written to: {reason}; choose another, or null for none") from None


def find_free_bytes(root: Path) -> int | None:
    """Free bytes of the file system that a run folder is, or will be, on; None where it does not tell."""
    try:
        return shutil.disk_usage(find_existing(root)).free
    except OSError:
        return None


def check_room(layout: RunLayout, settings: Settings, slots: Slots, system: SystemRecord) -> str | None:
    """Refuse a disk that cannot hold the first iteration.

    Returns
    -------
    str or None
        What to say where the whole campaign would not fit.

    Raises
    ------
    RunFolderError
    """
    size = compute_size(settings, slots, system, settings.frames_per_segment or 1)
    free = find_free_bytes(layout.root)
    if free is None:
        return None
    if free < size.iteration_bytes:
        raise RunFolderError(
            f"the disk of {layout.root} has {say_bytes(free)} free, the next iteration needs "
            f"{say_bytes(size.iteration_bytes)}: {say_remedy(layout)}"
        )
    left = size.total_bytes - count_bytes_in(layout.root)
    if settings.frames_per_segment is not None and left > free:
        return (
            f"{size.n_iterations} iterations need up to {say_bytes(size.total_bytes)} of disk, "
            f"{say_bytes(free)} are free (entk-app check tells more)"
        )
    return None


def note_friction(settings: Settings) -> list[str]:
    """What to say of a friction that stands for water, where water is simulated."""
    friction = settings.simulate.friction_per_ps
    if settings.system.solvent != "explicit" or friction <= _FRICTION_IN_WATER:
        return []
    return [
        f"simulate.friction_per_ps = {friction:g} stands for water, which system.solvent = 'explicit' simulates: 1 is "
        "usual there, more slows the protein down"
    ]


def say_remedy(layout: RunLayout) -> str:
    """What to do about a disk without room."""
    return "make room" if layout.decisions.exists() else "make room, or choose another --run-dir"


def count_bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def compute_trajectory_bytes(n_atoms: int, n_frames: int, is_periodic: bool = False) -> int:
    """Size of a segment's ``trajectory.dcd``."""
    return _DCD_HEADER + n_frames * (12 * n_atoms + _DCD_RECORDS + _DCD_BOX * is_periodic)


def compute_frames_bytes(
    n_atoms: int, n_residues: int, has_native: bool, n_frames: int, has_score: bool = False
) -> int:
    """Size of a segment's ``frames.h5``."""
    columns = _H5_COLUMNS + _H5_NATIVE_COLUMNS * has_native + has_score
    chunks = math.ceil(n_frames / _H5_CHUNK)
    return chunks * _H5_CHUNK * (geometry.count_bytes(n_residues) + 8 * columns) + 24 * n_atoms + _H5_OVERHEAD


def compute_frame_bytes(system: SystemRecord) -> int:
    """What one more frame takes in trajectory, ``frames.h5`` and log."""
    columns = _H5_COLUMNS + _H5_NATIVE_COLUMNS * system.has_native + (system.score is not None)
    frame = compute_trajectory_bytes(system.n_atoms, 1, system.is_periodic) - _DCD_HEADER
    return frame + geometry.count_bytes(system.n_residues) + 8 * columns + _LOG_ROW


def count_rounds(settings: Settings, slots: Slots, frames_per_segment: int) -> tuple[int, int]:
    """Simulate stages on all slots, before learning, and on the slots that simulate while models learn; at most."""
    initial = 0 if settings.is_control else settings.steering.initial_frames
    first = max(1, math.ceil(initial / (slots.total * frames_per_segment)))
    # In a split every iteration simulates beside its training; in turns the last one only learns.
    return first, settings.stop.max_iterations - (not slots.is_split)


def compute_size(
    settings: Settings,
    slots: Slots,
    system: SystemRecord,
    frames_per_segment: int,
    n_parameters: tuple[int, ...] = (),
) -> Size:
    """How large the campaign becomes if only its limits end it.

    Parameters
    ----------
    settings : Settings
    slots : Slots
    system : SystemRecord
    frames_per_segment : int
        As the settings say, or as the speed makes of ``segment_minutes``.
    n_parameters : tuple of int
        Of each model; without them models are not counted.
    """
    n_atoms, n_residues, frames = system.n_atoms, system.n_residues, frames_per_segment
    first, later = count_rounds(settings, slots, frames)
    limit, n_iterations = "stop.max_iterations", settings.stop.max_iterations
    if settings.stop.max_time_us is not None:
        allowed = settings.stop.max_time_us * 1e6 / (frames * settings.simulate.report_interval_ps)
        rounds = max(0, math.ceil((allowed - first * slots.total) / slots.simulate))
        if rounds < later:
            limit, later = "stop.max_time_us", rounds
            n_iterations = max(1, later + (not slots.is_split))
    n_segments = first * slots.total + later * slots.simulate
    segment = (
        compute_trajectory_bytes(n_atoms, frames, system.is_periodic)
        + compute_frames_bytes(n_atoms, n_residues, system.has_native, frames, system.score is not None)
        + frames * _LOG_ROW
        + n_atoms * (_STATE_ATOM + _PDB_LINE)
        + _RECORDS
    )
    dims, chosen = settings.train.latent_dims, settings.analyse.models
    encoded = sum(dims) if chosen == "all" else max(dims) if chosen == "best" else chosen
    n_encoders = len(dims) if chosen == "all" else 1
    models = sum(4 * count + _MODEL_OVERHEAD for count in n_parameters)
    if not settings.learns:
        encoded = n_encoders = models = 0
        dims = ()

    latent = 4 * frames * encoded + n_encoders * _EMBEDDING_OVERHEAD
    training = models + len(dims) * _RADICAL_TASK
    analysis = 0 if settings.is_control else _RADICAL_TASK

    before = first * slots.total
    beside = slots.simulate if slots.is_split else 0
    first_segments = before + beside
    n_trainings, encoded_segments = count_trainings(settings, before, slots.simulate, n_iterations, beside)
    fixed = _RADICAL + 4 * n_atoms * _PDB_LINE
    n_frames = n_segments * frames
    return Size(
        n_iterations=n_iterations,
        n_trainings=n_trainings,
        n_segments=n_segments,
        n_frames=n_frames,
        frames_per_segment=frames,
        limit=limit,
        segment_bytes=segment,
        iteration_bytes=fixed
        + first_segments * (segment + _RADICAL_TASK + latent)
        + training
        + analysis,
        total_bytes=fixed
        + n_segments * (segment + _RADICAL_TASK)
        + n_trainings * training
        + n_iterations * analysis
        + encoded_segments * latent,
        training_memory=_training_memory(settings, n_residues, n_frames, n_parameters) if settings.learns else 0,
        analysis_memory=_analysis_memory(settings, n_residues, n_frames) if settings.learns else 0,
    )


def count_trainings(
    settings: Settings, first: int, more: int, n_iterations: int, beside: int = 0
) -> tuple[int, int]:
    """Iterations in which models train, as far as the growth of the frames decides, and segments that they encode.

    Parameters
    ----------
    settings : Settings
    first, more : int
        Segments that the first models are trained on, and those that each further iteration adds.
    n_iterations : int
    beside : int
        Segments that are simulated beside a training: its models encode them, but are not trained on them.
    """
    if not settings.learns:
        return 0, 0
    if settings.train.retrain == "always":
        # Each model encodes all segments that there are.
        return n_iterations, n_iterations * (first + beside) + more * n_iterations * (n_iterations - 1) // 2
    n_trainings, encoded, iteration, known = 0, 0, 1, first
    while iteration <= n_iterations:
        grown = math.ceil((settings.train.retrain_growth * known - first) / more)
        following = 1 + max(iteration, grown)
        # Its models encode what comes until the next training.
        encoded += first + beside + more * (min(following, n_iterations + 1) - 2)
        n_trainings, iteration, known = n_trainings + 1, following, first + more * (following - 1)
    return n_trainings, encoded


def _training_memory(settings: Settings, n_residues: int, n_frames: int, n_parameters: tuple[int, ...]) -> int:
    packed = n_frames * geometry.count_bytes(n_residues)
    trained = count_training_frames(settings, n_frames)
    # Weights, gradients, the optimiser's moments, the best so far.
    weights = 5 * 4 * max(n_parameters, default=0)
    filters = sum((64, 64 // 4, 64 // 4, 64 // 4) if settings.train.architecture == "paper" else (16 // 4, 32 // 16))
    # Feature maps of encoder and decoder and their gradients.
    maps = 4 * choose_batch(settings, trained) * n_residues**2 * 4 * (1 + filters)
    return (
        _TENSORFLOW
        + 2 * packed
        + _TRAINING_COPIES * trained * geometry.count_bytes(n_residues)
        + (trained * _SHUFFLED_FRAME + weights + maps)
    )


def _analysis_memory(settings: Settings, n_residues: int, n_frames: int) -> int:
    packed = 2 * n_frames * geometry.count_bytes(n_residues)
    # Distances, neighbours, and what is computed from both, of 8 bytes each.
    neighbours = n_frames * settings.analyse.min_samples * 8 * 4
    latent = n_frames * max(settings.train.latent_dims) * (8 + 4 + 4)
    unpacked = _ENCODE_BATCH * n_residues**2 * 4 * 18
    return _TENSORFLOW + packed + neighbours + latent + unpacked


def count_training_frames(settings: Settings, n_frames: int) -> int:
    """Frames that a model sees in an epoch."""
    chosen = n_frames if settings.train.max_frames is None else min(n_frames, settings.train.max_frames)
    return max(1, round(chosen * (1.0 - settings.train.held_out_fraction)))


def choose_batch(settings: Settings, n_frames: int) -> int:
    """As :func:`entk_app.cvae.choose_batch_size`, without TensorFlow."""
    if settings.train.batch_size is not None:
        return min(settings.train.batch_size, n_frames)
    low, high = (1, 1_000_000) if settings.train.architecture == "paper" else (32, 512)
    return int(min(max(n_frames // 100, low), high, n_frames))


def compute_times(
    settings: Settings,
    slots: Slots,
    size: Size | None,
    speed: Speed | None,
    training: TrainingSpeed | None,
    walltime_min: float,
    gpus: int,
) -> Times:
    """Minutes and hours that follow from the speeds measured."""
    segment = settings.simulate.segment_minutes
    if settings.simulate.segment_ns is not None and speed is not None:
        segment = settings.simulate.segment_ns / speed.ns_per_day * 1440.0
    learn = None
    if not settings.learns:
        learn = 0.0
    elif training is not None and size is not None:
        frames = count_training_frames(settings, size.n_frames)
        turns = math.ceil(len(settings.train.latent_dims) / slots.learn)
        learn = turns * settings.train.epochs * frames * training.seconds_per_frame / 60.0
    iteration = None
    if segment is not None and learn is not None:
        iteration = max(segment, learn) if slots.is_split else segment + learn
    hours = gpu_hours = n_in_walltime = None
    if iteration is not None and size is not None:
        n_in_walltime = int(walltime_min / iteration) if iteration else None
        # Without learning: all stages before the split, all but the first where stages take turns.
        n_before = count_rounds(settings, slots, size.frames_per_segment)[0] - (not slots.is_split)
        n_without = size.n_iterations - size.n_trainings
        hours = ((n_before + n_without) * (segment or 0.0) + size.n_trainings * iteration) / 60.0
        gpu_hours = hours * gpus if gpus else None
    return Times(
        segment=segment,
        training=learn,
        iteration=iteration,
        walltime=walltime_min,
        n_in_walltime=n_in_walltime,
        campaign_hours=hours,
        gpu_hours=gpu_hours,
    )


def note_steering(settings: Settings, has_native: bool) -> list[str]:
    """What of the way a campaign is steered its user may not expect."""
    notes = []
    method = settings.steering.method
    if not has_native:
        ranked = "; restarts are ranked by novelty" if settings.learns else ""
        notes.append(f"no native structure: no RMSD and no target{ranked}")
    if method != "cvae":
        what = "no learning, no restarts: the control" if method == "none" else "restarts without learning"
        notes.append(f"steering.method = {method}: {what}")
    unused = explain_unused(settings)
    if unused is not None:
        notes.append(unused)
    return notes


def say_bytes(count: float) -> str:
    """Bytes for people, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000.0
    return f"{count:.3g} {unit}"
