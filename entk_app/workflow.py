"""The campaign as an EnTK Pipeline: stages of tasks, and the post_exec that extends it with the next stage."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import entk_app
from entk_app.campaign import Campaign, StageSpec, TaskSpec
from entk_app.layout import RunLayout

logger = logging.getLogger(__name__)

#: Python threads of numerical libraries that a task would otherwise take from its neighbours.
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class AdaptiveWorkflow:
    """Turns a campaign's stages into one EnTK Pipeline that grows as the campaign decides.

    Parameters
    ----------
    campaign : Campaign
    layout : RunLayout
        The run folder under a name that RADICAL-Pilot's shell scripts can take.
    python : Path
        Interpreter of the tasks, likewise.

    Attributes
    ----------
    pipeline : radical.entk.Pipeline
    error : BaseException or None
        What stopped the campaign inside a ``post_exec``; EnTK itself would hang on it.
    """

    def __init__(self, campaign: Campaign, layout: RunLayout, python: Path) -> None:
        from radical import entk

        self._entk = entk
        self.campaign = campaign
        self.layout = layout
        self.python = python
        self.error: BaseException | None = None
        self.pipeline = entk.Pipeline()
        self.pipeline.name = "campaign"
        self.pipeline.add_stages(self._build_stage(campaign.start()))

    def _build_stage(self, spec: StageSpec) -> Any:
        stage = self._entk.Stage()
        # EnTK wants a stage's name before its tasks.
        stage.name = spec.name
        for task in spec.tasks:
            stage.add_tasks(self._build_task(task))
        stage.post_exec = self._extend
        return stage

    def _build_task(self, spec: TaskSpec) -> Any:
        layout, settings = self.layout, self.campaign.settings
        order = layout.root / spec.order.relative_to(self.campaign.layout.root)
        task = self._entk.Task()
        task.name = spec.name
        # 'python' would be looked up after the agent has changed PATH.
        task.executable = str(self.python)
        task.arguments = ["-m", "entk_app.tasks", spec.kind, str(layout.root), str(order)]
        task.sandbox = str(layout.task_sandbox(spec.name))
        task.pre_exec = build_pre_exec(settings.resource.pre_exec)
        task.environment = build_environment(os.environ, spec.cores, layout.radical / "home", spec.gpus)
        task.cpu_reqs = {
            "cpu_processes": 1,
            "cpu_process_type": None,
            "cpu_threads": spec.cores,
            "cpu_thread_type": None,
        }
        if spec.gpus:
            # With the type CUDA, RADICAL-Pilot sets CUDA_VISIBLE_DEVICES to the device that it assigned.
            task.gpu_reqs = {
                "gpu_processes": spec.gpus,
                "gpu_process_type": "CUDA",
                "gpu_threads": 1,
                "gpu_thread_type": None,
            }
        return task

    def _extend(self) -> None:
        """The post_exec of every stage: take its results in, decide, append the next stage."""
        try:
            following = self.campaign.advance()
            if following is not None:
                self.pipeline.add_stages(self._build_stage(following))
        except BaseException as error:
            # Anything raised here would kill EnTK's thread and hang run(): keep it, and let the pipeline end.
            logger.exception("the decision after stage %s failed", self.campaign.stage)
            self.error = error


def build_pre_exec(lines: tuple[str, ...]) -> list[str]:
    """Shell lines before a task: the user's, then an environment without the agent's PYTHONPATH."""
    parent = Path(entk_app.__file__).resolve().parent.parent
    python_path = [f"export PYTHONPATH={shlex.quote(str(parent))}"] if not _is_installed(parent) else []
    return [*lines, "unset PYTHONPATH", *python_path]


def build_environment(environment: Mapping[str, str], cores: int, private: Path, gpus: int = 0) -> dict[str, str]:
    """Variables of a task.

    Parameters
    ----------
    environment : mapping
        The launcher's.
    cores : int
        Threads of numerical libraries.
    private : Path
        Folder for what Keras and matplotlib would write to the home.
    gpus : int
        Devices that RADICAL-Pilot will assign; a task without one sees none.
    """
    chosen = {name: str(cores) for name in _THREAD_VARIABLES}
    chosen["PYTHONUNBUFFERED"] = "1"
    chosen["KERAS_HOME"] = str(private / ".keras")
    chosen["MPLCONFIGDIR"] = str(private / "matplotlib")
    chosen["HDF5_USE_FILE_LOCKING"] = environment.get("HDF5_USE_FILE_LOCKING", "FALSE")
    if not gpus:
        chosen |= dict.fromkeys(_DEVICE_VARIABLES, "")
    elif environment.get("CUDA_VISIBLE_DEVICES"):
        # RADICAL-Pilot numbers devices from 0: the task looks up which of the launcher's it was given.
        chosen["ENTK_APP_DEVICES"] = environment["CUDA_VISIBLE_DEVICES"]
    # The user's own home, not the one that the agent was given.
    if "ENTK_APP_HOME" in environment:
        chosen["HOME"] = environment["ENTK_APP_HOME"]
    return chosen


def _is_installed(parent: Path) -> bool:
    """Whether Python finds the package without help: site-packages, or an editable install of this checkout."""
    import site

    if any(Path(folder).resolve() == parent for folder in (*site.getsitepackages(), site.getusersitepackages())):
        return True
    import importlib.metadata

    try:
        text = importlib.metadata.distribution("entk-app").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return False
    return text is not None and json.loads(text).get("url") == parent.as_uri()
