"""Every path of a run folder and every EnTK name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SegmentPaths:
    """The files of one segment; ``work`` holds them until they are whole."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder.with_name(self.folder.name + ".partial")

    @property
    def task(self) -> Path:
        """The order to the simulate task whose first segment this is, written by the campaign."""
        return self.folder.with_name(self.folder.name + ".task.json")

    @property
    def record(self) -> Path:
        return self.folder / "segment.json"

    @property
    def trajectory(self) -> Path:
        return self.folder / "trajectory.dcd"

    @property
    def frames(self) -> Path:
        return self.folder / "frames.h5"

    @property
    def state(self) -> Path:
        return self.folder / "state.xml"

    @property
    def log(self) -> Path:
        return self.folder / "log.csv"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.json"

    def in_work(self) -> SegmentPaths:
        """The same files while the segment is being written."""
        return SegmentPaths(self.work)


@dataclass(frozen=True)
class ModelPaths:
    """The files of one trained model."""

    folder: Path

    @property
    def task(self) -> Path:
        return self.folder.with_name(self.folder.name + ".task.json")

    @property
    def encoder(self) -> Path:
        return self.folder / "encoder.keras"

    @property
    def decoder(self) -> Path:
        return self.folder / "decoder.keras"

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def record(self) -> Path:
        return self.folder / "model.json"

    @property
    def embeddings(self) -> Path:
        """Latent coordinates of the frames that this model has encoded, one dataset a segment."""
        return self.folder / "embeddings.h5"


@dataclass(frozen=True)
class RunLayout:
    """Where everything of a campaign lies, below one folder.

    Parameters
    ----------
    root : Path
    scratch : Path or None
        Folder of ``radical`` and ``logs`` while a campaign runs, if not ``root``.
    """

    root: Path
    scratch: Path | None = None

    @property
    def settings(self) -> Path:
        return self.root / "settings.yaml"

    @property
    def run_info(self) -> Path:
        return self.root / "run.json"

    @property
    def decisions(self) -> Path:
        return self.root / "decisions.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def stop_request(self) -> Path:
        """Tasks end in order when this file appears."""
        return self.root / "stop.request"

    @property
    def deadline(self) -> Path:
        """When the tasks of the present pilot end in order."""
        return self.root / "deadline.json"

    @property
    def pilots(self) -> Path:
        """One line a pilot, where the launcher keeps them."""
        return self.root / "pilots.jsonl"

    @property
    def accounting(self) -> Path:
        """What ``entk-app accounting`` writes."""
        return self.root / "accounting"

    @property
    def report(self) -> Path:
        """What ``entk-app report`` writes."""
        return self.root / "report"

    @property
    def resource_configs(self) -> Path:
        """The resource file as it was when the campaign began."""
        return self.root / "resource_configs"

    @property
    def lock(self) -> Path:
        return self.root / "campaign.lock"

    @property
    def set_aside(self) -> Path:
        """What is not read as data: segments that did not finish, and results that were damaged."""
        return self.root / "set-aside"

    @property
    def set_aside_notes(self) -> Path:
        """One line for each of them: where it was, and why it is no data."""
        return self.set_aside / "notes.jsonl"

    @property
    def system(self) -> Path:
        return self.root / "system"

    @property
    def topology(self) -> Path:
        """Start structure: the topology of every trajectory."""
        return self.system / "topology.pdb"

    @property
    def native(self) -> Path:
        return self.system / "native.pdb"

    @property
    def system_xml(self) -> Path:
        return self.system / "system.xml"

    @property
    def score(self) -> Path:
        """The file of the user's own score; tasks run it."""
        return self.system / "score.py"

    @property
    def system_record(self) -> Path:
        return self.system / "system.json"

    @property
    def simulations(self) -> Path:
        return self.root / "simulations"

    def simulation(self, simulation: int) -> Path:
        return self.simulations / f"{simulation:04d}"

    def simulation_record(self, simulation: int) -> Path:
        return self.simulation(simulation) / "simulation.json"

    def end_request(self, simulation: int) -> Path:
        """The task of this simulation ends in order when this file appears: a decision has ended it."""
        return self.simulation(simulation) / "end.request"

    def start_structure(self, simulation: int) -> Path:
        return self.simulation(simulation) / "start.pdb"

    def segment(self, simulation: int, segment: int) -> SegmentPaths:
        return SegmentPaths(self.simulation(simulation) / f"segment-{segment:04d}")

    def segment_numbers(self, simulation: int) -> list[int]:
        """Numbers of the segments that a simulation has published, in order."""
        folders = self.simulation(simulation).glob("segment-*")
        names = (re.fullmatch(r"segment-(\d{4,})", folder.name) for folder in folders)
        return sorted(int(match.group(1)) for match in names if match)

    def find_segment(self, folder: Path) -> tuple[int, int] | None:
        """Simulation and number of a published segment's folder; None where it is not one."""
        match = re.fullmatch(r"segment-(\d{4,})", folder.name)
        if match is None or folder.parent.parent != self.simulations:
            return None
        return int(folder.parent.name), int(match.group(1))

    @property
    def models(self) -> Path:
        return self.root / "models"

    def model(self, iteration: int, latent_dim: int) -> ModelPaths:
        return ModelPaths(self.models / f"iteration-{iteration:04d}" / f"latent-{latent_dim}")

    @property
    def analyses(self) -> Path:
        return self.root / "analysis"

    def analysis(self, iteration: int) -> Path:
        return self.analyses / f"iteration-{iteration:04d}.json"

    def analysis_task(self, iteration: int) -> Path:
        return self.analyses / f"iteration-{iteration:04d}.task.json"

    @property
    def logs(self) -> Path:
        return (self.scratch or self.root) / "logs"

    def task_sandbox(self, task: str, pilot: int = 0) -> Path:
        """What a task prints; each pilot has a folder of its own, for RADICAL-Pilot numbers its tasks anew."""
        return self.logs / ("tasks" if pilot == 0 else f"tasks-{pilot:04d}") / task

    @property
    def radical(self) -> Path:
        """All that RADICAL-EnTK and RADICAL-Pilot write."""
        return (self.scratch or self.root) / "radical"


def failure_of(order: Path) -> Path:
    """Where a task says why it failed."""
    return order.with_name(order.name.removesuffix(".task.json") + ".failure.json")


def simulate_task_name(iteration: int, simulation: int, segment: int) -> str:
    """EnTK names hold letters, digits and dots."""
    return f"simulate.{iteration:04d}.{simulation:04d}.{segment:04d}"


def train_task_name(iteration: int, latent_dim: int) -> str:
    return f"train.{iteration:04d}.latent{latent_dim}"


def analyse_task_name(iteration: int) -> str:
    return f"analyse.{iteration:04d}"


@dataclass(frozen=True)
class TaskName:
    """A task's name taken apart; ``kind`` is "other" for a name that is not of this application."""

    kind: str
    iteration: int | None = None
    simulation: int | None = None
    segment: int | None = None
    latent_dim: int | None = None


_TASK_NAMES = (
    re.compile(r"(?P<kind>simulate)\.(?P<iteration>\d+)\.(?P<simulation>\d+)\.(?P<segment>\d+)(\.try\d+)?"),
    re.compile(r"(?P<kind>train)\.(?P<iteration>\d+)\.latent(?P<latent_dim>\d+)(\.try\d+)?"),
    re.compile(r"(?P<kind>analyse)\.(?P<iteration>\d+)(\.try\d+)?"),
)


def parse_task_name(name: str) -> TaskName:
    """The reverse of the functions above."""
    for pattern in _TASK_NAMES:
        match = pattern.fullmatch(name)
        if match:
            parts = match.groupdict()
            return TaskName(kind=parts.pop("kind"), **{key: int(value) for key, value in parts.items()})
    return TaskName("other")
