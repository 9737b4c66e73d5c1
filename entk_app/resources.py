"""Resource files: where a label's entry comes from and what its node has. Imports no radical.

RADICAL-Pilot reads ``resource_<site>.json``; a label is ``<site>.<key>``. Entries are looked up in the user's own
``~/.radical/pilot/configs``, in this application's ``resource_configs/`` and in those that RADICAL-Pilot ships, in
this order.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entk_app.errors import SettingsError
from entk_app.settings import ResourceSettings, suggest

LOCAL = "local.localhost"


@dataclass(frozen=True)
class Resource:
    """A resource as it will be asked for.

    Attributes
    ----------
    label : str
    entry : dict
        The resource file's entry, with the cores and GPUs of this request.
    source : Path
        The file that it stands in.
    cores, gpus : int
        Of the whole pilot; cores count hardware threads.
    node_cores : int
        Of one node.
    """

    label: str
    entry: dict[str, Any]
    source: Path
    cores: int
    gpus: int
    node_cores: int

    @property
    def site(self) -> str:
        return self.label.split(".", 1)[0]

    @property
    def key(self) -> str:
        return self.label.split(".", 1)[1]


def config_folders(home: Path | None = None) -> list[Path]:
    """Folders with resource files, the one that wins first."""
    folders = [(home or Path.home()) / ".radical" / "pilot" / "configs"]
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
                entries.setdefault(f"{site}.{key}", (entry, path))
    return entries


def find_resource(settings: ResourceSettings, folders: list[Path] | None = None) -> Resource:
    """The entry of ``resource.label`` and what this campaign gets of it.

    Raises
    ------
    SettingsError
        There is no such label, or its file does not say how many cores a node has and neither do the settings.
    """
    entries = read_entries(folders if folders is not None else config_folders())
    if settings.label not in entries:
        sites = sorted({label.split(".")[0] for label in entries})
        raise SettingsError(
            f"resource.label = '{settings.label}': no resource file has it{suggest(settings.label, entries)}; "
            f"files exist for the sites {', '.join(sites)}"
        )
    entry, source = entries[settings.label]
    cores, gpus = settings.cores, settings.gpus
    if settings.label == LOCAL:
        cores = cores or len(os.sched_getaffinity(0))
        gpus = count_gpus() if gpus is None else gpus
        entry = {**entry, "cores_per_node": cores, "gpus_per_node": gpus}
    else:
        cores = cores or int(entry.get("cores_per_node") or 0) * _count_threads(entry)
        gpus = int(entry.get("gpus_per_node") or 0) if gpus is None else gpus
    if not cores:
        raise SettingsError(
            f"resource.cores: {source.name} does not say how many cores '{settings.label}' has; give it"
        )
    node_cores = int(entry.get("cores_per_node") or 0) * _count_threads(entry) or cores
    return Resource(settings.label, entry, source, cores, gpus, node_cores)


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use; 0 where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=60, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _count_threads(entry: dict[str, Any]) -> int:
    """Hardware threads a core that RADICAL-Pilot counts."""
    return int((entry.get("system_architecture") or {}).get("smt", 1) or 1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        # RADICAL's JSON has comment lines.
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        return dict(json.loads("\n".join(lines)))
    except (OSError, ValueError) as error:
        raise SettingsError(f"the resource file {path} cannot be read: {error}") from None
