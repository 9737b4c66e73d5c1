"""A pilot's files as RADICAL-Pilot writes them, with times that a test chooses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from entk_app.layout import RunLayout, parse_task_name
from entk_app.records import SegmentRecord, write_record, write_text

HEADER = "#time,event,comp,thread,uid,state,msg"


@dataclass
class WrittenTask:
    """A task in seconds after the pilot's start; None: that event never came."""

    uid: str
    name: str
    scheduled: float | None = None
    started: float | None = None
    stopped: float | None = None
    released: float | None = None
    cores: tuple[int, ...] = (0,)
    gpus: tuple[int, ...] = ()
    gpu_part: float = 1.0
    exit_code: int | None = 0
    publishes: bool = True
    stage: str = "stage"

    @property
    def full_name(self) -> str:
        return f"{self.uid},{self.name},stage.0000,{self.stage},pipeline.0000,campaign"


@dataclass
class WrittenPilot:
    """A pilot that starts at a unix time; the other times are seconds after it."""

    session: str = "re.session.0001"
    uid: str = "pilot.0000"
    start: float = 1000.0
    submitted: float | None = -5.0
    active: float | None = 10.0
    cancelled: float | None = 95.0
    stop: float | None = 100.0
    cores: int = 4
    gpus: int = 0
    walltime_min: int = 10
    tasks: list[WrittenTask] = field(default_factory=list)

    def write(self, layout: RunLayout, client: bool = True) -> Path:
        """Write what a pilot leaves; ``client``: what a session leaves that was closed in order, too."""
        sandbox = layout.radical / "radical.pilot.sandbox" / self.session / self.uid
        session = layout.radical / self.session
        sandbox.mkdir(parents=True, exist_ok=True)
        session.mkdir(parents=True, exist_ok=True)
        write_text(layout.settings, "{}\n")
        self._write_agent(sandbox)
        config = {"resource": "site.machine", "nodes": 1, "cores": self.cores, "cores_per_node": self.cores,
                  "gpus": self.gpus, "gpus_per_node": self.gpus, "runtime": self.walltime_min}  # fmt: skip
        (sandbox / "agent_0.cfg").write_text(json.dumps(config))
        for task in self.tasks:
            self._write_task(layout, task)
        if client:
            self._write_client(session)
        return sandbox

    def _line(self, after: float | None, event: str, uid: str, state: str = "", message: str = "") -> list[str]:
        return [] if after is None else [f"{self.start + after:.7f},{event},comp,MainThread,{uid},{state},{message}"]

    def _write_agent(self, sandbox: Path) -> None:
        uid = self.uid
        (sandbox / "bootstrap_0.prof").write_text("\n".join([
            HEADER,
            *self._line(0.0, "bootstrap_0_start", uid, "PMGR_ACTIVE_PENDING"),
            *self._line(self.stop, "bootstrap_0_stop", uid, "PMGR_ACTIVE"),
        ]) + "\n")  # fmt: skip
        (sandbox / "agent_0.prof").write_text("\n".join([
            HEADER,
            *self._line(self.active, "advance", uid, "PMGR_ACTIVE"),
            *self._line(self.cancelled, "cmd", uid, "", f"cancel_pilots : {{'uids': ['{uid}']}}"),
        ]) + "\n")  # fmt: skip
        lines = [HEADER]
        for task in self.tasks:
            lines += self._line(task.scheduled or 0.0, "advance", task.uid, "AGENT_SCHEDULING")
            lines += self._line(task.scheduled, "schedule_ok", task.uid)
            lines += self._line(task.released, "unschedule_stop", task.uid)
        (sandbox / "agent_scheduling.0000.prof").write_text("\n".join(lines) + "\n")

    def _write_task(self, layout: RunLayout, task: WrittenTask) -> None:
        folder = layout.task_sandbox(task.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{task.uid}.exec.sh").write_text(
            f'export RP_TASK_NAME="{task.full_name}"\nexport RP_PILOT_ID="{self.uid}"\n'
            f'export RP_SESSION_ID="{self.session}"\nexport RP_CORES_PER_RANK={len(task.cores)}\n'
            f"export RP_GPUS_PER_RANK={len(task.gpus) * task.gpu_part:g}\nexport RP_RANKS=1\n"
            f"        export CUDA_VISIBLE_DEVICES={','.join(map(str, task.gpus))} || rp_error pre_exec\n"
        )
        # A task's profile has no header, and grows when the task is run again.
        with (folder / f"{task.uid}.prof").open("a") as stream:
            for line in self._line(task.started, "rank_start", task.uid) + self._line(
                task.stopped, "rank_stop", task.uid
            ):
                stream.write(line + "\n")
        if task.publishes and task.started is not None and task.stopped is not None:
            began, ended = self.start + task.started + 0.5, self.start + task.stopped - 0.5
            write_segment(layout, task.name, began, ended)

    def _write_client(self, session: Path) -> None:
        (session / "pmgr.0000.prof").write_text(
            "\n".join([HEADER, *self._line(self.submitted, "advance", self.uid, "PMGR_LAUNCHING_PENDING")]) + "\n"
        )
        lines = [HEADER]
        for task in self.tasks:
            lines += self._line((task.scheduled or 0.0) - 0.25, "advance", task.uid, "SCHEDULING", "stage.0000")
        (session / "radical.entk.wfprocessor.0000.prof").write_text("\n".join(lines) + "\n")
        node = {"name": "node1", "index": 0, "cores": [{"index": i} for i in range(self.cores)],
                "gpus": [{"index": i} for i in range(self.gpus)]}  # fmt: skip
        pilot = {"uid": self.uid, "resource": "site.machine", "nodelist": {"nodes": [node]},
                 "description": {"nodes": 0, "cores": self.cores, "gpus": self.gpus, "runtime": self.walltime_min},
                 "resource_details": {"requested_nodes": 1}}  # fmt: skip
        (session / "pmgr.0000.json").write_text(json.dumps({"pilots": [pilot]}))
        tasks = {task.uid: self._document(task) for task in self.tasks}
        (session / "tmgr.0000.json").write_text(json.dumps({"tasks": tasks}))

    def _document(self, task: WrittenTask) -> dict:
        slot = {"node_name": "node1", "cores": [{"index": i, "occupation": 1.0} for i in task.cores],
                "gpus": [{"index": i, "occupation": task.gpu_part} for i in task.gpus]}  # fmt: skip
        return {"uid": task.uid, "name": task.full_name, "pilot": self.uid, "exit_code": task.exit_code,
                "state": "DONE" if task.exit_code == 0 else "FAILED",
                "slots": [] if task.started is None else [slot]}  # fmt: skip


def write_segment(layout: RunLayout, name: str, unix_start: float, unix_end: float, rmsd: float | None = 5.0) -> None:
    """The record of the segment that a simulate task of this name publishes; 100 ps."""
    parts = parse_task_name(name)
    assert parts.simulation is not None and parts.segment is not None
    record = SegmentRecord(
        simulation=parts.simulation, segment=parts.segment, iteration=parts.iteration or 1, decision=0, origin=None,
        seed=1, n_frames=10, steps=100, first_step=0, time_ps=100.0, start_time_ps=0.0, min_rmsd_angstrom=rmsd,
        min_rmsd_frame=None if rmsd is None else 3, last_rmsd_angstrom=rmsd, platform="CPU", device=None, cores=1,
        friction_per_ps=1.0, temperature_k=300.0, ended_by="length", seconds_setup=0.1, seconds_md=1.0, ns_per_day=1.0,
        unix_start=unix_start, unix_end=unix_end,
    )  # fmt: skip
    write_record(layout.segment(parts.simulation, parts.segment).record, record)
