"""What the campaign and its tasks tell each other: frozen records, written whole, validated when read."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from entk_app.errors import RecordError
from entk_app.settings import Goal

logger = logging.getLogger(__name__)

RecordType = TypeVar("RecordType", bound="Record")

#: Key of a record's own checksum in its file.
_CHECKSUM = "sha256"

#: JSON has no infinity: an unbounded isolation is written as null.
UnboundedFloat = Annotated[
    float,
    BeforeValidator(lambda value: float("inf") if value is None else value),
    PlainSerializer(lambda value: None if value == float("inf") else value, return_type=float | None),
]


class Record(BaseModel):
    """Base of everything that is kept as JSON in a run folder, each with a checksum of its own (``sha256``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileDigest(Record):
    """Size and SHA-256 (hexadecimal) of a file; of a file larger than a MiB also of each MiB of it, in ``blocks``."""

    n_bytes: int
    sha256: str
    blocks: tuple[str, ...] = ()


#: Digests by the file's name, of what stands beside a record.
Digests = dict[str, FileDigest]


class FrameRef(Record):
    """The identity of a frame: carried beside the numbers, never computed from a global index."""

    simulation: int
    segment: int
    frame: int

    def __str__(self) -> str:
        return f"simulation {self.simulation} segment {self.segment} frame {self.frame}"

    @property
    def key(self) -> tuple[int, int, int]:
        return (self.simulation, self.segment, self.frame)


class Placement(Record):
    """Where a task ran.

    Attributes
    ----------
    host : str
    task, session : str or None
        RADICAL-Pilot's names of the task and its session; None in process.
    devices : tuple of str
        GPUs that the task was given: uuid where the driver tells, else the id.
    cores : tuple of int
        Cores (hardware threads) that are its own where ``pinned``, else those that it may use.
    pinned : bool
        Whether the process was bound to them here.
    emulated : bool
        Devices and cores are counted only; none of them is there.
    sharers : int
        Tasks that may hold the device at a time; ``cores`` are this one's.
    """

    host: str
    task: str | None
    session: str | None
    devices: tuple[str, ...]
    cores: tuple[int, ...]
    pinned: bool
    emulated: bool
    sharers: int = 1

    @property
    def device(self) -> str | None:
        return ",".join(self.devices) or None


class ScoreRecord(Record):
    """What frames are scored by beside their RMSD.

    Attributes
    ----------
    name : str
        A known score, or the name of the user's function.
    module : str or None
        Importable module of that function; None: it is in ``system/score.py``, or the score is a known one.
    sha256 : str or None
        Of that module's source, for the tasks to have the same.
    """

    name: str
    goal: Goal
    is_known: bool
    module: str | None = None
    sha256: str | None = None


class SystemRecord(Record):
    """What is simulated, as built at the start of the campaign.

    Attributes
    ----------
    ca_indices : tuple of int
        The CA atoms among all that are simulated.
    solvent : str
        ``explicit``: water and ions in a periodic box; trajectories hold them and the box.
    chains : tuple of (int, int)
        Of explicit solvent: the first atom of each chain of the protein, and the one after its last.
    """

    name: str
    model: Literal["all-atom", "calpha"]
    sequence: str
    n_atoms: int
    n_residues: int
    ca_indices: tuple[int, ...]
    has_native: bool
    force_field: str
    solvent: Literal["implicit", "explicit"] = "implicit"
    chains: tuple[tuple[int, int], ...] = ()
    score: ScoreRecord | None = None
    files: Digests = Field(default_factory=dict)

    @property
    def is_periodic(self) -> bool:
        return self.solvent == "explicit"

    @property
    def kind(self) -> str:
        """The model, and the solvent where it is simulated too."""
        return f"{self.model} in explicit solvent" if self.is_periodic else self.model


class SimulationRecord(Record):
    """Where a simulation comes from."""

    simulation: int
    iteration: int
    origin: FrameRef | None
    origin_rmsd_angstrom: float | None = None
    seed: int


class SimulateTask(Record):
    """The order to a simulate task: so many frames, or minutes, of one simulation.

    Attributes
    ----------
    segment : int
        Number of the first segment that it publishes; it may publish several, one after the other.
    previous : int or None
        Segment whose State it goes on from; None: it begins at ``origin``, or at the initial structure.
    n_frames, minutes : int, float or None
        How much is to be run: exactly one of them.
    """

    simulation: int
    segment: int
    iteration: int
    decision: int
    seed: int
    origin: FrameRef | None
    previous: int | None
    n_frames: int | None
    minutes: float | None
    cores: int
    gpus: int
    allow_cpu: bool = False


#: Why a segment ends. ``save``: its simulation goes on in the same task, which only made sure of what there was.
#: ``decision``: its simulation was purged or ended while it ran.
EndedBy = Literal["length", "clock", "save", "decision", "stop_request", "walltime", "budget"]


class SegmentRecord(Record):
    """One finished segment. Its files stand beside it.

    ``seconds_writing``, of ``seconds_md``, is what its reporters took.
    """

    simulation: int
    segment: int
    iteration: int
    decision: int
    origin: FrameRef | None
    seed: int
    n_frames: int
    steps: int
    first_step: int
    time_ps: float
    start_time_ps: float
    min_rmsd_angstrom: float | None
    min_rmsd_frame: int | None
    last_rmsd_angstrom: float | None
    best_score: float | None = None
    best_score_frame: int | None = None
    platform: str
    device: str | None
    cores: int
    placement: Placement | None = None
    friction_per_ps: float
    temperature_k: float
    ended_by: EndedBy
    seconds_setup: float
    seconds_md: float
    seconds_writing: float | None = None
    ns_per_day: float
    unix_start: float
    unix_end: float
    files: Digests = Field(default_factory=dict)


class SegmentProgress(Record):
    """A running segment, refreshed every few seconds."""

    simulation: int
    segment: int
    n_frames: int
    min_rmsd_angstrom: float | None
    ns_per_day: float


class SegmentKey(Record):
    """A segment whose frames a task is to read, and how many there are."""

    simulation: int
    segment: int
    n_frames: int


class ModelRef(Record):
    """A model by the iteration that trained it and its latent size."""

    iteration: int
    latent_dim: int


class TrainTask(Record):
    """The order to a train task: one latent size on these segments.

    Attributes
    ----------
    segments : tuple of SegmentKey
        All there are; what it trains on is chosen among them.
    previous : ModelRef or None
        The model before this one: its weights are the start where ``train.warm_start`` says so.
    newest : ModelRef or None
        The newest model of any size: segments that it could not be trained on are new, and blocks are as its were.
    rare : tuple of FrameRef
        Outliers of the newest analysis.
    """

    iteration: int
    latent_dim: int
    seed: int
    segments: tuple[SegmentKey, ...]
    encode_all: bool
    previous: ModelRef | None = None
    newest: ModelRef | None = None
    rare: tuple[FrameRef, ...] = ()
    cores: int
    gpus: int
    allow_cpu: bool = False


class ModelRecord(Record):
    """A trained model and how well it reconstructs frames that it was not trained on.

    Attributes
    ----------
    n_frames : int or None
        Frames of all segments there were; it was trained on a choice of them.
    block_frames : int or None
        Frames of a block, of which some are held out from all models.
    warm_start : ModelRef or None
        Whose weights it began with.
    held_out_standard_error : float or None
        Of ``held_out_reconstruction``, by blocks; None where there are fewer than two.
    """

    iteration: int
    latent_dim: int
    architecture: str
    n_residues: int
    n_parameters: int
    n_train_frames: int
    n_held_out_frames: int
    n_frames: int | None = None
    block_frames: int | None = None
    warm_start: ModelRef | None = None
    batch_size: int
    epochs: int
    best_epoch: int
    held_out_reconstruction: float
    held_out_standard_error: float | None = None
    held_out_loss: float
    train_loss: float
    seconds_load: float
    seconds_train: float
    seconds_per_epoch: float
    inference_ms_per_frame: float | None
    platform: Literal["GPU", "CPU"]
    precision: Literal["float32", "mixed"] = "float32"
    device: str | None
    placement: Placement | None = None
    seed: int
    unix_start: float
    unix_end: float
    files: Digests = Field(default_factory=dict)


class AnalyseTask(Record):
    """The order to an analyse task.

    Attributes
    ----------
    models : tuple of ModelRef
        Without any, frames are chosen as ``steering.method`` says.
    best : tuple of FrameRef
        Frames that join the outliers, the best of a segment each, best first.
    min_rmsd_angstrom : float or None
        The lowest of the segments, by their records.
    """

    iteration: int
    models: tuple[ModelRef, ...]
    segments: tuple[SegmentKey, ...]
    best: tuple[FrameRef, ...] = ()
    min_rmsd_angstrom: float | None = None
    cores: int
    gpus: int
    allow_cpu: bool = False


class NewFrames(Record):
    """How a model reconstructs the frames that it has just met for the first time.

    Attributes
    ----------
    n_frames : int
    reconstruction : float
        Mean loss, nats a frame.
    standard_error : float or None
        By blocks of frames that followed one another; None where there are fewer than two.
    """

    n_frames: int
    n_blocks: int
    reconstruction: float
    standard_error: float | None


class ModelOutliers(Record):
    """What one model found: DBSCAN with this eps has this noise set."""

    model: ModelRef
    eps: float | None
    min_samples: int
    n_frames: int
    n_outliers: int
    new_frames: NewFrames | None = None


class Finding(Record):
    """One model's word on an outlier: DBSCAN calls it noise at every eps below ``distance``."""

    latent_dim: int
    eps: float
    distance: UnboundedFloat

    @property
    def isolation(self) -> float:
        return self.distance / self.eps


class Outlier(Record):
    """A frame that at least one model holds for an outlier, or that stands for one where nothing is learned.

    Attributes
    ----------
    score : float or None
        None where the campaign has no score beside the RMSD.
    problems : tuple of str
        Why nothing may start from it.
    region : int or None
        Outliers of the same number lie near one another in the latent space of the best of the models that are asked.
    """

    frame: FrameRef
    rmsd_angstrom: float | None
    score: float | None = None
    problems: tuple[str, ...] = ()
    found_by: tuple[Finding, ...]
    region: int | None = None

    @property
    def isolation(self) -> float:
        """Distance over eps, the largest of the models: comparable between latent spaces."""
        return max((finding.isolation for finding in self.found_by), default=0.0)


class AnalysisRecord(Record):
    """The outliers of an iteration, lowest RMSD first; ``best_model`` is None where nothing is learned."""

    iteration: int
    best_model: ModelRef | None
    models: tuple[ModelOutliers, ...]
    outliers: tuple[Outlier, ...]
    n_frames: int
    min_rmsd_angstrom: float | None
    seconds_encode: float
    seconds_outliers: float
    placement: Placement | None = None
    unix_start: float
    unix_end: float


class TaskFailure(Record):
    """Why a task failed, in its own words; beside its order, until that is written anew.

    Attributes
    ----------
    kind : str
        ``damaged``: something that it read is not as it was published, ``hung``, ``blew_up``, else ``error``.
    reason : str
    damaged : str or None
        The folder or file that is damaged, relative to the run folder.
    """

    kind: Literal["damaged", "hung", "blew_up", "error"]
    reason: str
    damaged: str | None = None
    unix: float


class SetAside(Record):
    """Something that is not read as data any more, where it lies now, and why.

    Attributes
    ----------
    path, kept_as : str
        Relative to the run folder.
    simulation, segment : int or None
        Of a finished segment that was damaged; its number is not given again.
    n_frames, decision : int or None
        Of that segment, where its record can still be read.
    before_decision : int
        Decisions from this one on did not know it.
    """

    path: str
    kept_as: str
    reason: str
    simulation: int | None = None
    segment: int | None = None
    n_frames: int | None = None
    decision: int | None = None
    before_decision: int
    unix: float


class Action(Record):
    """What happens to one simulation, and why."""

    kind: Literal["start", "continue", "restart", "purge", "end"]
    simulation: int
    reason: str
    origin: FrameRef | None = None
    rmsd_angstrom: float | None = None
    score: float | None = None


class Decision(Record):
    """One turn of the campaign: what is run next, for which reason.

    ``train``: whether an iteration that learns trains models, or goes on with those that there are.
    """

    index: int
    iteration: int
    next: Literal["simulate", "learn", "simulate+learn", "stop"]
    train: bool = True
    reason: str
    stop_reason: str | None = None
    actions: tuple[Action, ...] = ()
    n_frames: int = 0
    n_outliers: int | None = None
    min_rmsd_angstrom: float | None = None
    n_failed_tasks: int = 0
    unix: float = 0.0


class Deadline(Record):
    """When the tasks of the present pilot end in order, and what for."""

    end_by_unix: float
    limit: Literal["walltime", "budget"]


class PilotRecord(Record):
    """A pilot of the campaign: what was asked for, and its life. ``None``: not yet, or nobody was left to say.

    ``unix_began`` is from when on it costs: when it was asked for, or when its batch job began. ``radical`` is where
    RADICAL-Pilot wrote while it ran.
    """

    number: int
    session: str | None
    resource: str
    nodes: int
    cores: int
    gpus: int
    walltime_min: float
    queued: bool
    radical: str = ""
    unix_submitted: float
    unix_began: float | None = None
    unix_active: float | None = None
    unix_end: float | None = None

    @property
    def gpu_hours(self) -> float:
        if self.unix_began is None or self.unix_end is None:
            return 0.0
        return self.gpus * max(0.0, self.unix_end - self.unix_began) / 3600.0


class RunInfo(Record):
    """With what a campaign was run: a run folder describes itself."""

    entk_app: str
    python: str
    executable: str
    host: str
    machine: str
    packages: dict[str, str | None]
    command: tuple[str, ...]
    seed: int
    unix: float


class Summary(Record):
    """The campaign as a row of the paper's table 1."""

    system: str
    model: str
    n_simulations: int
    total_time_us: float
    shortest_us: float | None
    longest_us: float | None
    n_iterations: int
    n_frames: int
    n_outliers: int
    n_purged: int
    n_restarts: int
    n_failed_tasks: int
    min_rmsd_angstrom: float | None
    min_rmsd_frame: FrameRef | None
    score: str | None = None
    best_score: float | None = None
    best_score_frame: FrameRef | None = None
    friction_per_ps: float
    temperature_k: float
    seed: int
    stop_reason: str
    message: str
    seconds: float
    platforms: tuple[str, ...]


def write_text(path: Path, text: str) -> None:
    """Publish a text file: a reader sees all of it or nothing.

    Raises
    ------
    OSError
        It cannot be written, or its run folder has gone: folders are made in a run folder, which is not made anew.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _make_folder(folder: Path) -> None:
    there = folder
    while not there.exists():
        there = there.parent
    if there == folder:
        return
    if not any((above / "settings.yaml").exists() for above in (there, *there.parents)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    folder.mkdir(parents=True, exist_ok=True)


def write_record(path: Path, record: Record) -> None:
    """Publish a record as JSON, whole or not at all."""
    write_text(path, json.dumps(_sign(record), indent=2, ensure_ascii=False) + "\n")


def read_record(kind: type[RecordType], path: Path) -> RecordType:
    """Read and validate a record.

    Raises
    ------
    RecordError
        The file is missing, truncated or not a record of this kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read the {kind.__name__} {path}: {error}") from None
    return _parse(kind, text, str(path))


def append_record(path: Path, record: Record) -> None:
    """Append a record as one line of a JSON-lines file, on disk before this returns.

    Raises
    ------
    OSError
        It cannot be written; the file is as it was, without half a line at its end.
    """
    line = memoryview(_to_line(record).encode())
    with path.open("ab", buffering=0) as stream:
        size = stream.tell()
        try:
            while line:
                # A full disk takes a part of it before it refuses.
                line = line[stream.write(line) :]
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(size)
            raise


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Publish a JSON-lines file anew, whole or not at all."""
    write_text(path, "".join(map(_to_line, records)))


def read_lines(kind: type[RecordType], path: Path) -> Iterator[RecordType]:
    """The records of a JSON-lines file; none where there is no file.

    Raises
    ------
    RecordError
        The file cannot be read, or a line is not a record of this kind.
    """
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parse(kind, line, f"{path} line {number}")


def read_whole_lines(kind: type[RecordType], path: Path) -> list[RecordType]:
    """The records of a JSON-lines file whose writer may have been killed: a torn last line is taken off the file.

    Nothing follows from a line before it is whole on disk, so that nothing is lost with it.

    Raises
    ------
    RecordError
        The file cannot be read, or a line before the last is not a record of this kind.
    """
    content = path.read_bytes() if path.exists() else b""
    whole, newline, torn = content.rpartition(b"\n")
    if torn:
        logger.warning("%s: its last line was cut off and is taken away", path)
        write_text(path, (whole + newline).decode("utf-8", errors="replace"))
    return list(read_lines(kind, path))


def _to_line(record: Record) -> str:
    return json.dumps(_sign(record), ensure_ascii=False) + "\n"


def _sign(record: Record) -> dict[str, Any]:
    """The record's values with their checksum as the last."""
    values = json.loads(record.model_dump_json())
    return {**values, _CHECKSUM: _checksum(values)}


def _checksum(values: dict[str, Any]) -> str:
    """Of the values, however they are laid out: indented or as a line."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parse(kind: type[RecordType], text: str, where: str) -> RecordType:
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise RecordError(f"{where} is not a whole {kind.__name__}: it is no JSON object")
        given = values.pop(_CHECKSUM, None)
        # One that was written by hand has none.
        if given is not None and given != _checksum(values):
            raise RecordError(f"{where} is not the {kind.__name__} that was written: its checksum differs")
        return kind.model_validate(values)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{where} is not a whole {kind.__name__}: {error}") from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{where} is not a whole {kind.__name__}: {place} {first['msg']}".strip()) from None


def order_by_rmsd(outliers: Iterable[Outlier]) -> tuple[Outlier, ...]:
    """Lowest RMSD first; most isolated first among equals and where there is no native structure."""
    return tuple(
        sorted(
            outliers,
            key=lambda o: (
                o.rmsd_angstrom if o.rmsd_angstrom is not None else float("inf"),
                -o.isolation,
                o.frame.key,
            ),
        )
    )


def order_by_score(outliers: Iterable[Outlier], goal: Goal) -> tuple[Outlier, ...]:
    """Best score first; those without one last, most isolated first among equals."""
    sign = 1.0 if goal == "minimise" else -1.0
    return tuple(
        sorted(
            outliers,
            key=lambda o: (sign * o.score if o.score is not None else float("inf"), -o.isolation, o.frame.key),
        )
    )
