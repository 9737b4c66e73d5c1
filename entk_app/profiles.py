"""What RADICAL-Pilot and EnTK left on disk, read as it stands: profiles, documents, task scripts. Imports no radical.

Profiles are CSV files ``time,event,component,thread,uid,state,message``. The agent's and bootstrapper's lie in the
pilot's sandbox (RADICAL-Pilot copies them into the session folder at the end), a task's own beside its output. All of
them are written as things happen, so they are there for a pilot that was killed; ``pmgr*.json`` and ``tmgr*.json``
(what was asked for, slots, exit codes) only appear when a session is closed in order.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entk_app.layout import RunLayout


@dataclass(frozen=True)
class Event:
    """A line of a profile."""

    unix: float
    name: str
    component: str
    uid: str
    state: str
    message: str


def read_profile(path: Path) -> list[Event]:
    """The events of a profile; comments, foreign lines and a last line that was cut off are left out."""
    events = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        fields = line.split(",", 6)
        if len(fields) < 7 or line.startswith("#"):
            continue
        try:
            unix = float(fields[0])
        except ValueError:
            continue
        events.append(Event(unix, fields[1], fields[2], fields[4], fields[5], fields[6]))
    return events


@dataclass(frozen=True)
class PilotFiles:
    """Where one pilot left its traces: client side, own sandbox and the copy of it."""

    session: str
    uid: str
    client: Path
    folders: tuple[Path, ...]
    description: dict[str, Any]

    def read_events(self) -> list[Event]:
        """Of the agent and the bootstrapper, in time; each profile once, from the sandbox first."""
        paths: dict[str, Path] = {}
        for folder in self.folders:
            for path in sorted(folder.glob("*.prof")):
                paths.setdefault(path.name, path)
        return sorted((e for path in paths.values() for e in read_profile(path)), key=lambda event: event.unix)

    def read_client_events(self) -> list[Event]:
        """Of the pilot manager and of EnTK's workflow processor."""
        paths = [*self.client.glob("pmgr.*.prof"), *self.client.glob("radical.entk.wfprocessor*.prof")]
        return sorted((event for path in paths for event in read_profile(path)), key=lambda event: event.unix)

    def read_json(self, pattern: str) -> dict[str, Any]:
        """The first of the pilot's own JSON files of this name."""
        for folder in self.folders:
            for path in sorted(folder.glob(pattern)):
                found = _read_json(path)
                if found:
                    return found
        return {}


def find_pilots(layout: RunLayout) -> list[PilotFiles]:
    """Every pilot that any session of this run folder tells of."""
    places: dict[tuple[str, str], list[Path]] = defaultdict(list)
    documents: dict[tuple[str, str], dict[str, Any]] = {}
    sandboxes = layout.radical / "radical.pilot.sandbox"
    for path in sorted(layout.radical.glob("re.session.*/pmgr*.json")):
        for document in as_list(_read_json(path).get("pilots")):
            key = (path.parent.name, str(document.get("uid")))
            documents[key] = document
            # A resource's working directory may be elsewhere.
            elsewhere = str(document.get("pilot_sandbox", "")).split("://", 1)[-1]
            places[key].append(sandboxes / key[0] / key[1])
            places[key].append(Path("/" + elsewhere.split("/", 1)[-1]))
    for folder in [*sorted(sandboxes.glob("*/pilot.*")), *sorted(layout.radical.glob("re.session.*/pilot.*"))]:
        if folder.is_dir():
            places[folder.parent.name, folder.name].append(folder)
    return [
        PilotFiles(
            session=session,
            uid=uid,
            client=layout.radical / session,
            folders=tuple(dict.fromkeys(folder for folder in folders if folder.is_dir())),
            description=documents.get((session, uid), {}),
        )
        for (session, uid), folders in sorted(places.items())
    ]


def read_pilot_lines(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The launcher's own list of its pilots, by session and pilot; later lines of a pilot complete earlier ones.

    Lines without a ``uid`` are a session's pilots in their order.
    """
    if not path.is_file():
        return {}
    by_number: dict[Any, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("session"):
            known = by_number.setdefault((line["session"], line.get("number")), {})
            known.update({key: value for key, value in line.items() if value is not None})
    found: dict[tuple[str, str], dict[str, Any]] = {}
    seen: dict[str, int] = defaultdict(int)
    for (session, _), line in by_number.items():
        found[session, str(line.get("uid") or f"pilot.{seen[session]:04d}")] = line
        seen[session] += 1
    return found


@dataclass(frozen=True)
class TaskSandbox:
    """A folder where a task of this uid ran, maybe more than once, as its script and profile tell."""

    name: str
    uid: str
    session: str | None
    pilot: str | None
    stage: str | None
    cores: float
    gpus: float
    gpu_ids: tuple[int, ...]
    events: tuple[Event, ...] = field(repr=False)


def find_task_sandboxes(layout: RunLayout) -> dict[str, list[TaskSandbox]]:
    """The sandboxes of all tasks by RADICAL-Pilot's uid; sessions count their tasks anew."""
    found = defaultdict(list)
    for path in sorted(layout.logs.glob("tasks*/*/*.exec.sh")):
        uid = path.name.removesuffix(".exec.sh")
        found[uid].append(_read_sandbox(path, uid))
    return found


_EXPORT = re.compile(r"^\s*export (?P<name>\w+)=\"?(?P<value>[^\"\n|]*?)\"?(?: \|\|.*)?$", re.MULTILINE)


def _read_sandbox(script: Path, uid: str) -> TaskSandbox:
    try:
        exported = dict(_EXPORT.findall(script.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        exported = {}
    ranks = as_float(exported.get("RP_RANKS")) or 1.0
    devices = exported.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return TaskSandbox(
        name=script.parent.name,
        uid=uid,
        session=exported.get("RP_SESSION_ID"),
        pilot=exported.get("RP_PILOT_ID"),
        stage=read_stage_name(exported.get("RP_TASK_NAME", "")),
        cores=ranks * (as_float(exported.get("RP_CORES_PER_RANK")) or 1.0),
        gpus=ranks * (as_float(exported.get("RP_GPUS_PER_RANK")) or 0.0),
        gpu_ids=tuple(int(device) for device in devices if device.strip().isdigit()),
        events=tuple(read_profile(script.with_name(f"{uid}.prof"))),
    )


def read_task_documents(session: Path) -> dict[str, dict[str, Any]]:
    """The task managers' documents of a session by task uid."""
    documents: dict[str, dict[str, Any]] = {}
    for path in sorted(session.glob("tmgr*.json")):
        tasks = _read_json(path).get("tasks")
        for document in tasks.values() if isinstance(tasks, dict) else as_list(tasks):
            documents[str(document.get("uid"))] = document
    return documents


def read_exit_code(document: dict[str, Any]) -> int | None:
    """Of the task; 1 for one that RADICAL-Pilot calls failed without saying."""
    code = document.get("exit_code")
    if code is not None:
        return int(code)
    found = re.search(r"exit code: (\d+)", str(document.get("exception_detail") or ""))
    return int(found.group(1)) if found else 1 if document.get("state") == "FAILED" else None


def read_stage_name(full: str) -> str | None:
    """EnTK hands RADICAL-Pilot ``uid,task,stage uid,stage,pipeline uid,pipeline`` as a task's name."""
    fields = full.split(",")
    return fields[3] if len(fields) > 3 else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        # Being written, or cut off.
        return {}
    return found if isinstance(found, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The objects of a JSON list; none where it is something else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def as_float(value: Any) -> float | None:
    """A number; None where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
