"""What the user asks for: one frozen, validated tree of settings, YAML in and out.

A value comes from the defaults below, then a preset or a configuration file, then ``--set key=value``.
Validators check; they never read files, make folders or draw numbers.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from entk_app.errors import EntkAppError, SettingsError

#: Pairs of keys of which a campaign has exactly one: giving one clears a default of the other.
ALTERNATIVES = (("simulate.segment_ns", "simulate.segment_minutes"),)

#: Keys whose value is a path: relative ones are made absolute.
_PATHS = (
    "system.pdb",
    "system.reference",
    "system.prmtop",
    "system.inpcrd",
    "resource.scratch",
    *(f"resource.environments.{stage}" for stage in ("simulate", "train", "analyse")),
)

#: A template of all settings with their comments has about 10,000; reading YAML takes a second for each of so many.
_MAX_CONFIG_BYTES = 200_000

_MAX_NUMBER = 1e15

Goal = Literal["minimise", "maximise"]

#: Scores known by name, and which way is better.
KNOWN_SCORES: dict[str, Goal] = {
    "rmsd": "minimise",
    "native_contacts": "maximise",
    "radius_of_gyration": "minimise",
}

#: A score of the user's own: an importable module or a file, and a function in it.
_OWN_SCORE = re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*")

#: Messages about so many settings are shown at once.
_MAX_MESSAGES = 20


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_types(cls, value: Any, info: ValidationInfo) -> Any:
        """What pydantic would take for something else: true for 1, an empty path for the working directory."""
        kinds = _kinds_of(cls.model_fields[info.field_name or ""].annotation)
        given = value if isinstance(value, (list, tuple)) else [value]
        if bool not in kinds and any(isinstance(item, bool) for item in given):
            raise ValueError("true and false (in YAML also yes, no, on and off) are no value of it")
        if Path in kinds and value == "":
            raise ValueError("give a path, or null for none")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_absurd_numbers(cls, value: Any) -> Any:
        """No number here means anything beyond this; what is computed from it must stay finite."""
        if isinstance(value, (int, float)) and abs(value) > _MAX_NUMBER:
            raise ValueError(f"numbers up to {_MAX_NUMBER:g} can be given")
        return value


def _kinds_of(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    inner = get_args(annotation)
    return set().union(*(_kinds_of(part) for part in inner)) if inner else {annotation}


class SystemSettings(_Group):
    """The protein, and how it is modelled."""

    name: str = Field(
        "villin",
        min_length=1,
        max_length=40,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*$",
        description="fs-peptide, villin, bba, or a name of your own together with `pdb` or `sequence`",
    )
    model: Literal["all-atom", "calpha"] = Field(
        "calpha",
        description="all-atom (AMBER ff99SB-ILDN, OBC solvent) or calpha (structure-based CA model; needs the native)",
    )
    pdb: Path | None = Field(None, description="start structure of a protein of your own (PDB)")
    sequence: str | None = Field(
        None, description="its one-letter sequence instead: an extended chain is built; ACE- and -NME caps allowed"
    )
    reference: Path | None = Field(
        None, description="native structure (PDB) for RMSD and native contacts; built-in systems have their own"
    )
    reduced_temperature: float = Field(
        0.6,
        gt=0,
        le=5,
        description="calpha only: temperature in units of epsilon/kB; sets the contact energy epsilon = kB T / this",
    )
    solvent: Literal["implicit", "explicit"] = Field(
        "implicit",
        description="all-atom: implicit (the paper's OBC), or explicit: water and ions in a periodic box with PME",
    )
    prmtop: Path | None = Field(
        None, description="explicit: topology of AMBER in place of `pdb`, with `inpcrd`; it brings its own force field"
    )
    inpcrd: Path | None = Field(None, description="its coordinates and box (inpcrd or rst7)")
    padding_angstrom: float = Field(
        10.0, gt=0, le=100, description="explicit, where the start has no water: from the protein to the box's edge"
    )
    ionic_strength_molar: float = Field(
        0.15, ge=0, le=5, description="likewise: NaCl in the water, beside the ions that make the box neutral"
    )


class SimulateSettings(_Group):
    """Molecular dynamics: one task a slot and iteration runs one segment."""

    segment_ns: float | None = Field(None, gt=0, le=1e6, description="length of a segment in simulated ns")
    segment_minutes: float | None = Field(
        None, gt=0, le=10_000, description="or in minutes of wall clock (the paper's 5), whichever you prefer"
    )
    report_interval_ps: float = Field(50.0, gt=0, le=1e6, description="a frame every so many ps")
    time_step_fs: float = Field(2.0, ge=0.01, le=50, description="integration step")
    hydrogen_mass_amu: float | None = Field(
        None, ge=1.0, le=5.0, description="all-atom: mass repartitioned to hydrogens (4 allows 4 fs); null: as is"
    )
    temperature_k: float = Field(300.0, gt=0, le=2000, description="Langevin temperature")
    friction_per_ps: float = Field(
        91.0, gt=0, le=1000, description="Langevin friction (91 is water's; 1 folds faster but is another kinetics)"
    )
    cutoff_angstrom: float = Field(
        10.0, gt=0, le=1000, description="all-atom: non-bonded cutoff; of explicit solvent that of PME's direct space"
    )
    pressure_bar: float | None = Field(
        1.0, gt=0, le=100_000, description="explicit: pressure (Monte Carlo barostat); null: constant volume"
    )
    contact_cutoff_angstrom: float = Field(
        8.0, gt=0, le=1000, description="two CA atoms nearer than this are in contact"
    )
    minimise_tolerance_kj_per_mol_nm: float = Field(10.0, gt=0, description="L-BFGS tolerance of the first segment")
    minimise_max_iterations: int = Field(100, ge=0, description="L-BFGS iterations at most (0: until converged)")
    platform: Literal["auto", "CUDA", "HIP", "OpenCL", "CPU", "Reference"] = Field(
        "auto", description="OpenMM platform; auto takes the fastest present"
    )


class TrainSettings(_Group):
    """Convolutional variational autoencoders: one task a latent size."""

    latent_dims: tuple[int, ...] = Field((3, 4, 5, 6), min_length=1, description="latent sizes, a model each")
    architecture: Literal["fast", "paper"] = Field(
        "fast", description="fast (two strided convolutions, Adam) or paper (four convolutions of 64 filters, RMSprop)"
    )
    epochs: int = Field(100, ge=1, le=100_000, description="epochs at most")
    patience: int | None = Field(
        10, ge=1, description="stop after so many epochs without a lower held-out loss; null: train all epochs"
    )
    batch_size: int | None = Field(
        None, ge=1, description="frames a batch; null: about 100 updates an epoch (fast: 32 to 512 frames)"
    )
    held_out_fraction: float = Field(0.2, gt=0, lt=1, description="share of the frames held out, in whole blocks")
    block_frames: int = Field(
        100, ge=1, description="consecutive frames of a block: neighbours in time are correlated and stay together"
    )
    precision: Literal["auto", "float32", "mixed"] = Field(
        "auto",
        description="mixed: layers compute in 16 bits, weights, outputs and losses have 32; auto: mixed on GPUs with "
        "tensor cores, float32 elsewhere",
    )
    max_frames: int | None = Field(
        200_000,
        ge=10,
        description="train on at most so many frames, in whole blocks: a third of new ones, a third around outliers, "
        "the rest at random from older ones; null: all",
    )
    retrain: Literal["rule", "always"] = Field(
        "rule",
        description="train in an iteration when the rule of the next two keys says so, or always; otherwise the models "
        "go on serving",
    )
    retrain_growth: float = Field(
        1.5,
        ge=1.01,
        le=1e6,
        description="retrain once there are so many times the frames that the models were trained on",
    )
    retrain_drift: float = Field(
        0.25,
        gt=0,
        le=1e6,
        description="or when new frames are reconstructed worse than held-out ones by this share, beyond doubt",
    )
    warm_start: bool = Field(True, description="a model goes on from the weights of the one before it")

    @field_validator("latent_dims")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= v <= 256 for v in value):
            raise ValueError("each latent size must be from 1 to 256")
        if len(set(value)) != len(value):
            raise ValueError("each latent size may be given once")
        return value


class AnalyseSettings(_Group):
    """Outliers: DBSCAN noise in the latent space."""

    models: Literal["all", "best"] | int = Field(
        "all", description="encode with all models, the best (lowest held-out reconstruction loss), or one latent size"
    )
    max_outliers: int = Field(50, ge=0, description="outliers a model at most; eps follows from it")
    best_frames: int = Field(
        0,
        ge=0,
        le=10_000,
        description="so many frames join the outliers: the best of each segment (lowest RMSD, unless steering.score "
        "says otherwise), best first: restarts follow what is near as well as what is new (0: the paper's outliers)",
    )
    min_samples: int = Field(10, ge=2, le=1000, description="DBSCAN: neighbours of a core point, itself counted")


class SteeringSettings(_Group):
    """Which simulations go on, end, or start from an outlier."""

    method: Literal["cvae", "rmsd-only", "random", "none"] = Field(
        "cvae",
        description="what stands for an outlier: cvae (noise of DBSCAN in the latent space), rmsd-only (the frames of "
        "lowest RMSD, no learning), random (frames at random, no learning); none: independent simulations, the control",
    )
    ranking: Literal["rmsd", "score", "mix", "novelty"] = Field(
        "rmsd",
        description="restart from the lowest RMSD; score (best `score` first); mix (of 4: 2 best, 1 random, 1 worst by "
        "`score`); novelty (most isolated)",
    )
    score: str = Field(
        "rmsd",
        max_length=4096,
        description="what is good in a frame, for the rankings score and mix and for stop.target_score: rmsd, "
        "native_contacts, radius_of_gyration, or a function of your own: file.py:function or package.module:function",
    )
    score_goal: Goal | None = Field(
        None, description="minimise or maximise the score; null: as a known score is; needed with one of your own"
    )
    one_per_region: bool = Field(
        False,
        description="restarts come from different regions of the latent space, the least used first, before a region "
        "gives another; false: wherever the ranking says (the paper's)",
    )
    initial_frames: int = Field(
        0, ge=0, description="all slots simulate, without learning, until so many frames exist (the paper's 100,000)"
    )
    min_frames: int = Field(10_000, ge=1, description="a simulation shorter than this is never purged")
    window: int = Field(5_000, ge=1, description="purge when none of a simulation's last so many frames is an outlier")
    min_restarts: int = Field(
        0,
        ge=0,
        description="at least so many slots an iteration are given to outliers: when the purge rule frees fewer, the "
        "simulations whose last outlier is longest ago give way (0: the paper's rule alone)",
    )

    @field_validator("score")
    @classmethod
    def _is_known_or_own(cls, value: str) -> str:
        if value not in KNOWN_SCORES and not _OWN_SCORE.fullmatch(value):
            raise ValueError(
                f"there is no such score{suggest(value[:100], KNOWN_SCORES)}; give {', '.join(KNOWN_SCORES)}, or a "
                "function of your own as path/to/file.py:function or package.module:function"
            )
        return value

    @property
    def has_score(self) -> bool:
        """Whether frames have a score beside their RMSD."""
        return self.score != "rmsd"

    @property
    def goal(self) -> Goal:
        """Which way the score is better."""
        return self.score_goal or KNOWN_SCORES.get(self.score, "minimise")

    @property
    def score_name(self) -> str:
        """The score in a word: a known name, or the name of the function."""
        return self.score.rpartition(":")[2]


class StopSettings(_Group):
    """When the campaign ends; whichever comes first."""

    target_rmsd_angstrom: float | None = Field(
        None, gt=0, description="folded: a frame this near to the native structure"
    )
    target_score: float | None = Field(None, description="a frame whose steering.score is this good, or better")
    max_iterations: int = Field(100, ge=1, description="iterations of simulate, train, analyse")
    max_time_us: float | None = Field(None, gt=0, description="aggregate simulated time")
    budget_gpu_hours: float | None = Field(
        None, gt=0, description="GPU-hours of all pilots of the campaign; it ends in order before it overspends"
    )


class FaultSettings(_Group):
    """What is done against losses: saving, what counts as hung, when to give up."""

    save_minutes: float = Field(
        5.0,
        gt=0,
        le=10_000,
        description="a running simulation closes and publishes what it has every so many minutes: a kill costs no more",
    )
    hang_minutes: float = Field(
        30.0,
        gt=0,
        le=10_000,
        description="a task that shows no new frame (or epoch, or model analysed) for so long has hung: it has failed",
    )
    give_up_after: int = Field(
        4, ge=1, description="a training or an analysis that fails so often in a row ends the campaign"
    )


class EnvironmentSettings(_Group):
    """Python environments of the tasks, by stage; null: the launcher's own."""

    simulate: Path | None = Field(None, description="prefix of an environment (it has bin/python) with entk-app in it")
    train: Path | None = Field(None, description="likewise")
    analyse: Path | None = Field(None, description="likewise")


class ResourceSettings(_Group):
    """Where it runs: a RADICAL-Pilot label and how its nodes are divided."""

    label: str = Field("local.localhost", pattern=r"^[\w-]+\.[\w.-]+$", description="<site>.<key> of a resource file")
    nodes: int | None = Field(None, ge=1, le=10_000, description="nodes to ask for; null: as cores and gpus need")
    cores: int | None = Field(
        None, ge=1, description="cores (hardware threads where the resource counts them) to ask for; null: whole nodes"
    )
    gpus: int | None = Field(None, ge=0, description="GPUs to ask for; null: whole nodes")
    cores_per_node: int | None = Field(
        None, ge=1, description="cores of a node, where the resource file leaves it open (slurm.cluster ...)"
    )
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs of a node, likewise")
    cores_per_simulation: int | None = Field(
        None, ge=1, description="cores of a simulation; null: one on a CPU, an equal share beside a GPU"
    )
    md_slots: int | None = Field(
        None,
        ge=1,
        description="GPUs that simulate once learning began, or simulations at a time without GPUs; null: three of "
        "four GPUs, or all slots without GPUs",
    )
    ml_slots: int | None = Field(
        None, ge=1, description="trainings at a time; null: the other GPUs, at most one a model, or all slots"
    )
    sims_per_gpu: int = Field(
        1,
        ge=1,
        le=16,
        description="small simulations that share a GPU and its cores at a time; trainings and analyses have one each",
    )
    require_gpu: bool | None = Field(
        None, description="a task that was given a GPU and finds none fails; null: unless the resource is emulated"
    )
    walltime_min: float | None = Field(
        None, gt=0, le=100_000, description="walltime of the pilot; null: what is left of the batch job, else 60"
    )
    queue: str | None = Field(None, description="batch queue or partition")
    project: str | None = Field(None, description="project or account that is charged")
    submit: bool = Field(
        False, description="queue the pilot as a batch job from here (--submit), not on the nodes of this job"
    )
    access_schema: str | None = Field(None, description="schema of the resource file; null: chosen by `submit`")
    scratch: Path | None = Field(
        None, description="folder, seen by all nodes, for radical's files and logs while it runs; null: the run folder"
    )
    node_local_path: Path | None = Field(
        None,
        description="folder on each node's own disk ($TMPDIR, /raid ...) where tasks write until a result is whole; "
        "null: the run folder",
    )
    pre_exec: tuple[str, ...] = Field((), description="shell lines run before every task (module load ...)")
    environments: EnvironmentSettings = Field(default_factory=EnvironmentSettings)


class Settings(_Group):
    """A whole campaign as asked for.

    Raises
    ------
    pydantic.ValidationError
        When a value is out of bounds or two do not go together; :func:`build_settings` words it for people.
    """

    seed: int = Field(1, ge=0, lt=2**31, description="all random numbers of the campaign follow from it")
    coupling: Literal["staged", "concurrent"] = Field(
        "staged",
        description="staged: simulate, train and analyse follow one another; concurrent: simulations go on segment "
        "after segment while models train and frames are analysed on slots of their own",
    )
    system: SystemSettings = Field(default_factory=SystemSettings)
    simulate: SimulateSettings = Field(default_factory=SimulateSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    analyse: AnalyseSettings = Field(default_factory=AnalyseSettings)
    steering: SteeringSettings = Field(default_factory=SteeringSettings)
    stop: StopSettings = Field(default_factory=StopSettings)
    faults: FaultSettings = Field(default_factory=FaultSettings)
    resource: ResourceSettings = Field(default_factory=ResourceSettings)

    @model_validator(mode="after")
    def _check(self) -> Settings:
        sim = self.simulate
        if (sim.segment_ns is None) == (sim.segment_minutes is None):
            given = "both are" if sim.segment_ns is not None else "neither is"
            raise ValueError(
                "simulate.segment_ns or simulate.segment_minutes: give exactly one "
                f"({given} set; entk-app template PRESET shows all settings)"
            )
        steps = sim.report_interval_ps * 1000.0 / sim.time_step_fs
        if abs(steps - round(steps)) > 1e-6 * steps or round(steps) < 1:
            raise ValueError(
                f"simulate.report_interval_ps = {sim.report_interval_ps:g} is {steps:g} steps of "
                f"simulate.time_step_fs = {sim.time_step_fs:g}: it must be a whole number of steps"
            )
        if sim.segment_ns is not None and sim.segment_ns * 1000.0 < sim.report_interval_ps * (1 - 1e-9):
            raise ValueError(
                f"simulate.segment_ns = {sim.segment_ns:g} is shorter than one "
                f"simulate.report_interval_ps = {sim.report_interval_ps:g}: a segment must hold at least one frame"
            )
        if isinstance(self.analyse.models, int) and self.analyse.models not in self.train.latent_dims:
            raise ValueError(
                f"analyse.models = {self.analyse.models} is not among train.latent_dims = "
                f"{list(self.train.latent_dims)}"
            )
        if self.steering.method == "rmsd-only" and self.steering.ranking == "novelty":
            raise ValueError(
                "steering.ranking = novelty: without a latent space (steering.method = rmsd-only) no frame is more "
                "isolated than another; take rmsd, score or mix"
            )
        if self.steering.window > self.steering.min_frames:
            raise ValueError(
                f"steering.window = {self.steering.window} is longer than steering.min_frames = "
                f"{self.steering.min_frames}: the window must lie within a simulation that may be purged"
            )
        self._check_score()
        return self

    @model_validator(mode="after")
    def _check_system(self) -> Settings:
        system = self.system
        if system.pdb is not None and system.sequence is not None:
            raise ValueError("system.pdb or system.sequence: give one of them, not both")
        if (system.prmtop is None) != (system.inpcrd is None):
            missing = "system.inpcrd" if system.inpcrd is None else "system.prmtop"
            raise ValueError(f"system.prmtop and system.inpcrd belong together: give {missing} too")
        if system.prmtop is not None and (system.pdb is not None or system.sequence is not None):
            raise ValueError("system.prmtop brings its own structure: leave system.pdb and system.sequence out")
        if system.prmtop is not None and system.solvent == "implicit":
            raise ValueError("system.prmtop is read as a system in water: set system.solvent = 'explicit' too")
        if system.solvent == "explicit" and system.model != "all-atom":
            raise ValueError(
                f"system.solvent = 'explicit': the model '{system.model}' has no solvent; set system.model = 'all-atom'"
            )
        return self

    def _check_score(self) -> None:
        score, goal = self.steering.score, self.steering.score_goal
        if score not in KNOWN_SCORES and goal is None:
            raise ValueError(
                f"steering.score = {_show(score)} is a function of your own: say by steering.score_goal=minimise or "
                "steering.score_goal=maximise which way is better"
            )
        if not self.steering.has_score and goal == "maximise":
            raise ValueError("steering.score_goal = 'maximise': the RMSD is minimised; name another steering.score")
        if not self.steering.has_score and self.stop.target_score is not None:
            raise ValueError(
                f"stop.target_score = {self.stop.target_score:g} needs a steering.score; the target of the RMSD is "
                "stop.target_rmsd_angstrom"
            )

    @property
    def learns(self) -> bool:
        """Whether models are trained."""
        return self.steering.method == "cvae"

    @property
    def is_control(self) -> bool:
        """Whether simulations are left to themselves: nothing is learned, none is purged or restarted."""
        return self.steering.method == "none"

    @property
    def steps_per_frame(self) -> int:
        return round(self.simulate.report_interval_ps * 1000.0 / self.simulate.time_step_fs)

    @property
    def frames_per_segment(self) -> int | None:
        """Frames of a segment of fixed length; None where the wall clock decides."""
        if self.simulate.segment_ns is None:
            return None
        return max(1, math.floor(self.simulate.segment_ns * 1000.0 / self.simulate.report_interval_ps + 1e-6))


def known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """All dotted keys of the tree, in order."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def preset_names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("entk_app.presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def read_preset(name: str) -> tuple[str, dict[str, Any]]:
    """The one-line description and the values of a preset.

    Raises
    ------
    SettingsError
        No preset of that name.
    """
    names = preset_names()
    if name not in names:
        raise SettingsError(f"there is no preset '{name}'{suggest(name, names)}; there are: {', '.join(names)}")
    text = (resources.files("entk_app.presets") / f"{name}.yaml").read_text(encoding="utf-8")
    title = text.splitlines()[0].lstrip("# ").strip()
    return title, yaml.safe_load(text)


def read_config(path: Path) -> dict[str, Any]:
    """The values of a YAML configuration file.

    Raises
    ------
    SettingsError
        The file is missing, not UTF-8, not YAML or not a mapping.
    """
    try:
        text = read_bounded(path, _MAX_CONFIG_BYTES, "the settings", SettingsError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return _as_mapping(_parse_yaml(text, str(path)), str(path))


def read_bounded(path: Path, limit: int, what: str, error_type: type[EntkAppError]) -> bytes:
    """The content of a regular file of at most so many bytes.

    A pipe or a device may never end, and a folder has no content: they are refused with what they are.

    Raises
    ------
    EntkAppError
        Of the type given.
    """
    try:
        if path.is_dir():
            raise error_type(f"{what}: {path} is a folder, not a file")
        if path.exists() and not path.is_file():
            raise error_type(f"{what}: {path} is not a regular file: write it to one first")
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except FileNotFoundError:
        raise error_type(f"{what}: there is no file {path}") from None
    except (OSError, ValueError) as error:
        # ValueError: a zero byte or a lone surrogate in the name.
        reason = error.strerror if isinstance(error, OSError) else error
        raise error_type(f"{what}: cannot read {str(path)[:200]!r}: {reason}") from None
    if len(content) > limit:
        raise error_type(f"{what}: {path} is larger than {limit:,} bytes: it is not what belongs here")
    return content


def build_settings(
    *layers: Mapping[str, Any], assignments: Iterable[str] = (), relative_to: Path | None = None
) -> Settings:
    """Merge layers of values, later over earlier, then ``key=value`` assignments, and validate.

    Parameters
    ----------
    layers
        Nested mappings, such as a preset's or a file's.
    assignments
        ``--set`` values: dotted key, ``=``, a YAML value.
    relative_to
        Folder that relative paths are made absolute against; None: the working directory.

    Raises
    ------
    SettingsError
        An unknown key, a value that is not allowed, or values that do not go together.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        _merge(values, copy.deepcopy(_as_mapping(layer, "the settings")))
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SettingsError(f"--set {_show(text)}: write it as key=value, such as stop.max_iterations=20")
        if key not in known_keys():
            near = suggest(key[:100], known_keys())
            raise SettingsError(f"--set {_show(text)}: there is no setting {_show(key)}{near}")
        nested: Any = _parse_yaml(value, f"--set {_show(text)}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(values, nested)
    for key in _PATHS:
        *groups, name = key.split(".")
        group: Any = values
        for part in groups:
            group = group.get(part) if isinstance(group, dict) else None
        if isinstance(group, dict) and isinstance(group.get(name), str) and group[name]:
            group[name] = str((relative_to or Path.cwd()) / os.path.expanduser(group[name]))
    steering = values.get("steering")
    score = steering.get("score") if isinstance(steering, dict) else None
    if isinstance(steering, dict) and isinstance(score, str) and ".py:" in score:
        steering["score"] = str((relative_to or Path.cwd()) / os.path.expanduser(score))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        messages = [_explain(item) for item in error.errors()]
        more = [f"and {len(messages) - _MAX_MESSAGES} more"] if len(messages) > _MAX_MESSAGES else []
        raise SettingsError("\n".join([*messages[:_MAX_MESSAGES], *more])) from None


def dump_yaml(settings: Settings) -> str:
    """The settings as YAML that :func:`read_config` reads back to an equal tree."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def render_template(preset: str) -> str:
    """A commented YAML file of every setting, with the preset's values."""
    title, values = read_preset(preset)
    settings = build_settings(values)
    lines = [f"# {title}", f"# Made by: entk-app template {preset}", ""]
    dumped = settings.model_dump(mode="json")

    def describe(model: type[BaseModel], data: Mapping[str, Any], indent: str) -> None:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                lines.extend(["", f"{indent}# {(kind.__doc__ or '').splitlines()[0]}", f"{indent}{name}:"])
                describe(kind, data[name], indent + "  ")
            else:
                value = yaml.safe_dump(data[name], default_flow_style=True, width=1000)
                lines.append(f"{indent}{name}: {value.removesuffix('...' + chr(10)).strip()}  # {field.description}")

    describe(Settings, dumped, "")
    return "\n".join(lines) + "\n"


class _StrictLoader(yaml.SafeLoader):
    """YAML without what settings need not and readers get wrong: PyYAML lets the last of two equal keys win, and a few
    lines of aliases expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, f"the alias *{event.anchor}: write the value out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "the merge key <<: write the values out", key.start_mark)
            if key.value in lines:
                text = f"'{key.value}' is given twice, in line {lines[key.value]} and in line {line}: keep one"
                raise ConstructorError(None, None, text, key.start_mark)
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        # A safe loader: it makes plain values only.
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise SettingsError(f"{where} is not valid YAML for settings: it is nested too deeply") from None
    except Exception as error:
        # PyYAML raises whatever it meets where a tag (!!int, !!timestamp) is on what is none.
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise SettingsError(f"{where} is not valid YAML for settings: {reason[:300]}") from None


def _as_mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where} must be groups of settings (system:, simulate: ...), not {type(value).__name__}")
    return dict(value)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for first, second in ALTERNATIVES:
        group, one, other = first.split(".")[0], first.split(".")[1], second.split(".")[1]
        given = over.get(group)
        if isinstance(given, Mapping) and isinstance(base.get(group), dict):
            for mine, theirs in ((one, other), (other, one)):
                if given.get(mine) is not None and given.get(theirs) is None:
                    base[group].pop(theirs, None)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def suggest(word: str, words: Iterable[str]) -> str:
    candidates = list(words)
    # A key in the wrong group is nearer than another key of that group.
    elsewhere = [w for w in candidates if "." in w and w.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    near = elsewhere or difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


#: What pydantic says in its own words.
_PLAINER = {
    "string_pattern_mismatch": "letters, digits, dots and dashes only (a resource label is <site>.<key>)",
    "tuple_type": "give a list, such as [3, 4]",
    "model_type": "this is a group of settings: give its keys below it",
    "model_attributes_type": "this is a group of settings: give its keys below it",
    "invalid_key": "keys must be words",
    "int_type": "give a whole number",
    "float_type": "give a number",
    "string_type": "give text, in quotes where it looks like a number",
}


def _explain(item: Any) -> str:
    parts = [str(part) for part in item["loc"]]
    # A union's branch name is pydantic's business, not the user's.
    key = ".".join(p for p in parts if p not in ("int", "float", "str") and not p.startswith("literal["))
    if item["type"] == "extra_forbidden":
        return f"{key}: there is no such setting{suggest(key, [*Settings.model_fields, *known_keys()])}"
    message = _PLAINER.get(item["type"], item["msg"].removeprefix("Value error, "))
    if not key:
        return message
    return f"{key} = {_show(item['input'])}: {message[0].lower()}{message[1:]}"


def _show(value: Any) -> str:
    """A value as a message can hold it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # An integer of thousands of digits is not printed by Python, nor is what is nested too deeply.
        return f"(a value of type {type(value).__name__}, too long to print)"
    return text if len(text) <= 80 else f"{text[:77]}..."
