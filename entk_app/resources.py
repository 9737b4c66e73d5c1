"""Resource files: where a label's entry comes from, what its nodes have, and what a campaign gets of them.

RADICAL-Pilot reads ``resource_<site>.json``; a label is ``<site>.<key>``. Entries are looked up in the folder given
with ``--resource-configs``, in the user's own ``~/.radical/pilot/configs``, in this application's
``resource_configs/`` and in those that RADICAL-Pilot ships, in this order. Imports no radical.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entk_app.batch import Job, find_job
from entk_app.errors import SettingsError
from entk_app.settings import ResourceSettings, suggest

logger = logging.getLogger(__name__)

LOCAL = "local.localhost"

#: A device in CUDA_VISIBLE_DEVICES; Slurm of old writes NoDevFiles where there is none.
_DEVICE = re.compile(r"\d+|GPU-\S+|MIG-\S+")

#: ``system_architecture.gpu`` of a resource whose devices are counted but not there.
EMULATED = "emulated"

#: RADICAL-Pilot's resource managers that read a batch job's environment, and the scheduler that they are for.
BATCH_MANAGERS = {"SLURM": "slurm", "PBSPRO": "pbs", "TORQUE": "pbs", "LSF": "lsf", "COBALT": "cobalt", "CCM": "pbs"}

#: Launch methods that choose a task's device themselves: RADICAL-Pilot is not to set CUDA_VISIBLE_DEVICES.
_PLACING_LAUNCHERS = ("SRUN", "JSRUN", "APRUN", "PRTE", "FLUX")


@dataclass(frozen=True)
class Resource:
    """A resource as it will be asked for.

    Attributes
    ----------
    label : str
    entry : dict
        The resource file's entry, filled in for this request.
    source : Path
        The file that it stands in.
    nodes, cores, gpus : int
        Of the whole pilot; cores count hardware threads where the entry's ``smt`` says so.
    node_cores, node_gpus : int
        Of one node.
    original : dict
        The entry as it stands in the file.
    schema : str or None
        Access schema.
    submit : bool
        Whether the pilot is queued as a batch job.
    """

    label: str
    entry: dict[str, Any]
    source: Path
    cores: int
    gpus: int
    node_cores: int
    node_gpus: int = 0
    nodes: int = 1
    schema: str | None = None
    submit: bool = False
    original: dict[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> str:
        return self.label.split(".", 1)[0]

    @property
    def key(self) -> str:
        return self.label.split(".", 1)[1]

    @property
    def is_this_node(self) -> bool:
        """Whether agent and tasks run where the launcher does, and nowhere else."""
        return self.nodes == 1 and not self.submit

    @property
    def manager(self) -> str:
        return str(self.entry.get("resource_manager") or "FORK").upper()

    @property
    def scheduler(self) -> str | None:
        """slurm, pbs, lsf or cobalt: by the endpoint that a pilot is queued at, else by the resource manager."""
        for schema in (self.entry.get("schemas") or {}).values():
            name = _endpoint(schema)
            if name != "fork":
                return {"pbspro": "pbs", "torque": "pbs"}.get(name, name)
        return BATCH_MANAGERS.get(self.manager)

    @property
    def launcher(self) -> str:
        """RADICAL-Pilot's launch method that is tried first."""
        order = (self.entry.get("launch_methods") or {}).get("order") or ["FORK"]
        return str(order[0]).upper()

    @property
    def places_devices(self) -> bool:
        """Whether the launch method gives a task its device, in place of RADICAL-Pilot."""
        return self.launcher in _PLACING_LAUNCHERS

    @property
    def is_emulated(self) -> bool:
        """Whether its devices are only counted: tasks share this machine, and there is no GPU."""
        return (self.entry.get("system_architecture") or {}).get("gpu") == EMULATED

    @property
    def agent_config(self) -> Path | None:
        """The agent's configuration that the entry names, where it stands beside the resource file."""
        name = self.entry.get("agent_config")
        path = self.source.with_name(f"agent_{name}.json")
        return path if isinstance(name, str) and name != "default" and path.is_file() else None

    @property
    def is_fork(self) -> bool:
        return self.manager == "FORK"


def config_folders(home: Path | None = None, given: Path | None = None) -> list[Path]:
    """Folders with resource files, the one that wins first.

    Raises
    ------
    SettingsError
        The folder given holds no resource file.
    """
    folders = []
    if given is not None:
        if not any(given.glob("resource_*.json")):
            raise SettingsError(f"--resource-configs {given}: there is no resource_<site>.json in it")
        folders.append(given)
    folders.append((home or Path.home()) / ".radical" / "pilot" / "configs")
    folders.append(Path(__file__).resolve().parent / "resource_configs")
    # Finding radical.pilot does not import it: its import reads an environment that is not prepared yet.
    spec = importlib.util.find_spec("radical.pilot")
    folders += [Path(place) / "configs" for place in (spec.submodule_search_locations or [])] if spec else []
    return [folder for folder in folders if folder.is_dir()]


def read_entries(folders: list[Path]) -> dict[str, tuple[dict[str, Any], Path]]:
    """All entries by label, each with the file that it stands in.

    Raises
    ------
    SettingsError
        A file is not JSON.
    """
    entries: dict[str, tuple[dict[str, Any], Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("resource_*.json")):
            site = path.stem.removeprefix("resource_")
            for key, entry in _read_json(path).items():
                if not isinstance(entry, dict):
                    raise SettingsError(f"the resource file {path} cannot be read: '{key}' is not an entry {{...}}")
                entries.setdefault(f"{site}.{key}", (entry, path))
    return entries


def get_entry(label: str, entries: Mapping[str, tuple[dict[str, Any], Path]]) -> tuple[dict[str, Any], Path]:
    """The entry of a label and its file.

    Raises
    ------
    SettingsError
        There is no such label; the near ones are named.
    """
    if label in entries:
        return entries[label]
    site, _, key = label.partition(".")
    near = [other for other in entries if other.split(".")[0] == site or other.split(".", 1)[1] == key]
    if near:
        hint = f"{suggest(label, entries) or ';'} near: {', '.join(sorted(near)[:8])}"
    else:
        sites = sorted({other.split(".")[0] for other in entries})
        hint = f"{suggest(label, entries)}; files exist for the sites {', '.join(sites)}"
    raise SettingsError(f"resource.label = '{label}': no resource file has it{hint} (entk-app resources lists them)")


def find_resource(
    settings: ResourceSettings, folders: list[Path] | None = None, environment: Mapping[str, str] | None = None
) -> Resource:
    """The entry of ``resource.label`` and what this campaign gets of it. Starts and looks up nothing elsewhere.

    Parameters
    ----------
    settings : ResourceSettings
    folders : list of Path
        Where resource files are; None: :func:`config_folders`.
    environment : mapping
        The launcher's, for the batch job that it may be in; None: ``os.environ``.

    Raises
    ------
    SettingsError
        There is no such label, it does not say how large a node is and neither do the settings, or more is asked for
        than it has.
    """
    entries = read_entries(folders if folders is not None else config_folders())
    entry, source = get_entry(settings.label, entries)
    _check_entry(settings.label, entry, source)
    original, entry = entry, json.loads(json.dumps(entry))
    job = find_job(environment if environment is not None else os.environ)
    _fill_node(entry, settings, job)
    threads = _count_threads(entry)
    # RADICAL-Pilot leaves these out.
    blocked = [len((entry.get("system_architecture") or {}).get(f"blocked_{what}") or ()) for what in ("cores", "gpus")]
    node_cores = int(entry.get("cores_per_node") or 0) * threads - blocked[0]
    node_gpus = int(entry.get("gpus_per_node") or 0) - blocked[1]
    if node_cores <= 0:
        raise SettingsError(
            f"resource.cores_per_node: {source.name} leaves open how many cores a node of '{settings.label}' has: "
            "give it, and resource.gpus_per_node"
        )
    nodes = settings.nodes or _count_nodes(entry, settings, job, node_cores, node_gpus)
    cores = nodes * node_cores if settings.cores is None else settings.cores
    gpus = nodes * node_gpus if settings.gpus is None else settings.gpus
    _check_size(settings, entry, nodes, cores, gpus, node_cores, node_gpus)
    if nodes == 1:
        # RADICAL-Pilot always gives out whole nodes: a part of one is a node of that size.
        if (cores, gpus) != (node_cores, node_gpus) and "exclusive" in (entry.get("system_architecture") or {}):
            # Not a whole node: others may have the rest of it.
            entry["system_architecture"]["exclusive"] = False
        node_cores, node_gpus = cores, gpus
        entry["cores_per_node"] = math.ceil((cores + blocked[0]) / threads)
        entry["gpus_per_node"] = gpus + blocked[1]
    schema = _choose_schema(settings, entry)
    resource = Resource(
        label=settings.label,
        entry=entry,
        source=source,
        cores=cores,
        gpus=gpus,
        node_cores=node_cores,
        node_gpus=node_gpus,
        nodes=nodes,
        schema=schema,
        submit=settings.submit,
        original=original,
    )
    _check_sharing(settings, resource)
    return resource


def _check_sharing(settings: ResourceSettings, resource: Resource) -> None:
    if settings.sims_per_gpu == 1 or not resource.gpus:
        return
    how = f"resource.sims_per_gpu = {settings.sims_per_gpu}"
    if resource.places_devices:
        raise SettingsError(
            f"{how}: {resource.label} launches tasks with {resource.launcher}, which gives out whole GPUs only; take "
            "1, or a resource whose launch method is FORK or SSH, such as ornl.dgx2"
        )
    scheduler = str(resource.entry.get("agent_scheduler") or "CONTINUOUS")
    if scheduler != "CONTINUOUS":
        raise SettingsError(
            f"{how}: {resource.label} has the agent_scheduler {scheduler}, which gives out whole GPUs only; take 1, or "
            "CONTINUOUS in its resource file"
        )


def keep_resource(resource: Resource, folder: Path) -> None:
    """Keep a resource's file, and the agent's configuration that it names, with the campaign that uses it."""
    if resource.source.parent == folder:
        return
    folder.mkdir(exist_ok=True)
    text = json.dumps({resource.key: resource.original}, indent=4)
    (folder / f"resource_{resource.site}.json").write_text(text + "\n", encoding="utf-8")
    if resource.agent_config is not None:
        shutil.copy(resource.agent_config, folder)


def check_presence(resource: Resource, environment: Mapping[str, str] | None = None) -> None:
    """Refuse to start where the resource is not: before any pilot, with what to do instead.

    Raises
    ------
    SettingsError
    """
    job = find_job(environment if environment is not None else os.environ)
    scheduler = resource.scheduler
    how = f"queue the pilot from here with --submit, or start in a job (entk-app job --resource {resource.label})"
    if resource.submit:
        if job is not None:
            raise SettingsError(f"--submit: this is inside {job}: leave it out, the pilot then takes this job's nodes")
        return
    if resource.manager in BATCH_MANAGERS:
        if job is None:
            raise SettingsError(f"{resource.label}: this is not inside a {scheduler} job: {how}")
        if job.nodes is not None and job.nodes < resource.nodes:
            raise SettingsError(f"resource.nodes = {resource.nodes}: {job} has {job.nodes}")
        if job.node_gpus is not None and job.node_gpus < resource.node_gpus:
            raise SettingsError(f"{resource.node_gpus} GPUs a node: {job} has {job.node_gpus} a node")
        return
    if resource.is_emulated or (job is not None and job.holds(resource.node_cores, resource.node_gpus)):
        return
    cores, gpus = len(os.sched_getaffinity(0)), count_gpus()
    if resource.is_fork and (resource.cores > cores or resource.gpus > gpus):
        hint = f"{how}; " if scheduler else ""
        raise SettingsError(
            f"{resource.label} wants {resource.cores} cores and {resource.gpus} GPUs, this machine has {cores} and "
            f"{gpus}: {hint}to try its shape on any machine take local.dgx2_emulated"
        )


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use; 0 where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(_DEVICE.fullmatch(part.strip()) is not None for part in visible.split(","))
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("nvidia-smi does not list the GPUs: %s", error)
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


#: Types of what is read of an entry here; RADICAL-Pilot checks the rest.
_ENTRY_TYPES = {
    "cores_per_node": int,
    "gpus_per_node": int,
    "system_architecture": dict,
    "schemas": dict,
    "launch_methods": dict,
    "resource_manager": str,
    "default_schema": str,
}


def _check_entry(label: str, entry: dict[str, Any], source: Path) -> None:
    for key, kind in _ENTRY_TYPES.items():
        value = entry.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise SettingsError(f"{label} in {source}: {key} = {value!r} must be of type {kind.__name__}")
    smt = (entry.get("system_architecture") or {}).get("smt", 1)
    if not isinstance(smt, int) or smt < 1:
        raise SettingsError(f"{label} in {source}: system_architecture.smt = {smt!r} must be a positive number")


def _fill_node(entry: dict[str, Any], settings: ResourceSettings, job: Job | None) -> None:
    """Cores and GPUs of a node: this machine's, the file's, the settings', or the batch job's."""
    if settings.label == LOCAL:
        entry["cores_per_node"], entry["gpus_per_node"] = len(os.sched_getaffinity(0)), count_gpus()
        return
    for key, asked, of_job in (
        ("cores_per_node", settings.cores_per_node, job.node_cores if job else None),
        ("gpus_per_node", settings.gpus_per_node, job.node_gpus if job else None),
    ):
        if asked is not None:
            if entry.get(key) and asked > entry[key]:
                raise SettingsError(f"resource.{key} = {asked}: a node of {settings.label} has {entry[key]}")
            entry[key] = asked
        elif not entry.get(key) and of_job is not None:
            entry[key] = of_job


def _count_nodes(
    entry: dict[str, Any], settings: ResourceSettings, job: Job | None, node_cores: int, node_gpus: int
) -> int:
    if (entry.get("resource_manager") or "FORK").upper() == "FORK":
        return 1
    if settings.cores is None and settings.gpus is None:
        return (job.nodes if job is not None and not settings.submit else None) or 1
    by_cores = math.ceil((settings.cores or 0) / node_cores)
    by_gpus = math.ceil((settings.gpus or 0) / node_gpus) if node_gpus else 0
    return max(1, by_cores, by_gpus)


def _check_size(
    settings: ResourceSettings,
    entry: dict[str, Any],
    nodes: int,
    cores: int,
    gpus: int,
    node_cores: int,
    node_gpus: int,
) -> None:
    label = settings.label
    one_node = (entry.get("resource_manager") or "FORK").upper() == "FORK"
    if one_node and nodes > 1 and (entry.get("system_architecture") or {}).get("gpu") != EMULATED:
        raise SettingsError(f"resource.nodes = {nodes}: {label} is one node")
    for key, asked, of_node, what in (("cores", cores, node_cores, "cores"), ("gpus", gpus, node_gpus, "GPUs")):
        if asked > nodes * of_node:
            has = f"{nodes} nodes of {label} have {nodes * of_node}" if nodes > 1 else f"{label} has {of_node}"
            raise SettingsError(
                f"resource.{key} = {asked}: {has} {what}"
                + ("; local.dgx2_emulated fakes a larger node" if label == LOCAL else "")
            )


def _choose_schema(settings: ResourceSettings, entry: dict[str, Any]) -> str | None:
    """The schema asked for; else one that queues a job where ``submit`` is set, one that forks where it is not."""
    schemas = entry.get("schemas") or {}
    if settings.access_schema is not None:
        if settings.access_schema not in schemas:
            raise SettingsError(
                f"resource.access_schema = '{settings.access_schema}': {settings.label} has {', '.join(schemas)}"
            )
        return settings.access_schema
    default = entry.get("default_schema")
    ordered = sorted(schemas, key=lambda name: name != default)
    wanted = [name for name in ordered if (_endpoint(schemas[name]) == "fork") != settings.submit]
    if wanted:
        return wanted[0]
    if settings.submit:
        raise SettingsError(
            f"--submit: {settings.label} has no schema for a batch system (it has {', '.join(schemas) or 'none'})"
        )
    # Inside a job of its scheduler RADICAL-Pilot forks whatever the schema says.
    return default


def _endpoint(schema: Any) -> str:
    """What a schema submits through: fork, slurm, pbspro, lsf ..."""
    url = str((schema or {}).get("job_manager_endpoint") or "fork") if isinstance(schema, dict) else "fork"
    parts = [part for part in url.split(":")[0].split("+") if part not in ("ssh", "gsissh")]
    return parts[0] if parts else "fork"


def _count_threads(entry: dict[str, Any]) -> int:
    """Hardware threads a core that RADICAL-Pilot counts."""
    return int((entry.get("system_architecture") or {}).get("smt", 1) or 1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        # RADICAL's JSON has comment lines.
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        content = json.loads("\n".join(lines))
        if not isinstance(content, dict):
            raise ValueError("it must hold {name: entry}")
        return content
    except (OSError, ValueError) as error:
        raise SettingsError(f"the resource file {path} cannot be read: {error}") from None
