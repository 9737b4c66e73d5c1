"""The campaign as EnTK Pipelines: stages of tasks, and the post_exec that extends them with the next stages."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import entk_app
from entk_app import placement
from entk_app.campaign import Campaign, StageSpec, TaskSpec
from entk_app.errors import SettingsError
from entk_app.layout import RunLayout
from entk_app.resources import Resource
from entk_app.settings import EnvironmentSettings
from entk_app.storage import find_trouble

logger = logging.getLogger(__name__)

#: Python threads of numerical libraries that a task would otherwise take from its neighbours.
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class AdaptiveWorkflow:
    """Turns a campaign's chains of stages into EnTK Pipelines that grow as the campaign decides.

    Parameters
    ----------
    campaign : Campaign
    layout : RunLayout
        The run folder under a name that RADICAL-Pilot's shell scripts can take.
    python : Path
        Interpreter of the tasks that have no environment of their own, likewise.
    resource : Resource
    stages : sequence of StageSpec
        The first ones, each of a pipeline.
    pilot : int
        Number of this pilot among those of the campaign.

    Attributes
    ----------
    pipelines : list of radical.entk.Pipeline
        One that has nothing to do for now is suspended.
    error : BaseException or None
        What stopped the campaign inside a ``post_exec``; EnTK itself would hang on it.
    """

    def __init__(
        self,
        campaign: Campaign,
        layout: RunLayout,
        python: Path,
        resource: Resource,
        stages: Sequence[StageSpec],
        pilot: int = 0,
    ) -> None:
        from radical import entk

        self._entk = entk
        self.campaign = campaign
        self.layout = layout
        self.python = python
        self.resource = resource
        self.pilot = pilot
        self.error: BaseException | None = None
        self.pipelines = [self._build_pipeline(place, stage) for place, stage in enumerate(stages)]
        self._waiting: list[Any] = []

    def _build_pipeline(self, place: int, stage: StageSpec) -> Any:
        pipeline = self._entk.Pipeline()
        pipeline.name = f"campaign.{place:04d}"
        pipeline.add_stages(self._build_stage(stage, pipeline))
        return pipeline

    def _build_stage(self, spec: StageSpec, pipeline: Any) -> Any:
        stage = self._entk.Stage()
        # EnTK wants a stage's name before its tasks.
        stage.name = spec.name
        for task in spec.tasks:
            stage.add_tasks(self._build_task(task))
        stage.post_exec = lambda: self._extend(pipeline, spec)
        return stage

    def _build_task(self, spec: TaskSpec) -> Any:
        layout, settings = self.layout, self.campaign.settings
        task = self._entk.Task()
        task.name = spec.name
        order = layout.root / spec.order.relative_to(self.campaign.layout.root)
        task.executable, *task.arguments = build_command(
            spec, layout.root, order, find_python(settings.resource.environments, spec.kind, self.python)
        )
        task.sandbox = str(layout.task_sandbox(spec.name, self.pilot))
        task.pre_exec = build_pre_exec(settings.resource.pre_exec)
        task.environment = build_environment(os.environ, spec, layout.radical / "home", self.resource)
        task.cpu_reqs = {
            "cpu_processes": 1,
            "cpu_process_type": None,
            "cpu_threads": spec.cores,
            "cpu_thread_type": None,
        }
        if spec.gpus:
            # With the type CUDA, RADICAL-Pilot sets CUDA_VISIBLE_DEVICES to the device that it assigned; a launch
            # method that assigns devices itself must not be overruled.
            task.gpu_reqs = {
                "gpu_processes": spec.gpus,
                "gpu_process_type": None if self.resource.places_devices else "CUDA",
                "gpu_threads": 1,
                "gpu_thread_type": None,
            }
        return task

    def _extend(self, pipeline: Any, ended: StageSpec) -> list[str]:
        """The post_exec of every stage: take its results in, decide, append what follows.

        Returns
        -------
        list of str
            Pipelines that go on: EnTK advances them.
        """
        is_asked_to_end = self.campaign.layout.stop_request.exists() and self.campaign.final_decision is None
        if is_asked_to_end or self.error is not None:
            # From outside: tasks that a batch system killed have not failed.
            return self._wake()
        try:
            following = self.campaign.follow(ended)
            pipelines = [pipeline, *self._waiting]
            for chosen, stage in zip(pipelines, following, strict=False):
                chosen.add_stages(self._build_stage(stage, chosen))
            if self.campaign.final_decision is not None:
                return self._wake()
            woken = self._wake(max(0, len(following) - 1))
            if not following:
                pipeline.suspend()
                self._waiting.append(pipeline)
            return woken
        except BaseException as error:
            # Anything raised here would kill EnTK's thread and hang run(): keep it, and let the pipelines end.
            self.error = error
            trouble = find_trouble(self.campaign.layout.root)
            if trouble is None:
                # Else the folder is to blame, and the launcher says so.
                logger.exception("the decision after stage %s failed", ended.name)
                self.campaign.layout.stop_request.touch()
            return self._wake()

    def _wake(self, count: int | None = None) -> list[str]:
        """So many of the pipelines that have nothing to do go on, or all: one without a new stage is over."""
        woken = self._waiting[:count]
        del self._waiting[:count]
        for pipeline in woken:
            pipeline.resume()
        return [pipeline.uid for pipeline in woken]


def build_pre_exec(lines: tuple[str, ...]) -> list[str]:
    """Shell lines before a task: the user's, then an environment without the agent's PYTHONPATH."""
    parent = Path(entk_app.__file__).resolve().parent.parent
    python_path = [f"export PYTHONPATH={shlex.quote(str(parent))}"] if not _is_installed(parent) else []
    return [*lines, "unset PYTHONPATH", *python_path]


def find_python(environments: EnvironmentSettings, kind: str, default: Path) -> Path:
    """Interpreter of a kind of task: that of its named environment, else the launcher's."""
    prefix = getattr(environments, kind)
    return default if prefix is None else prefix / "bin" / "python"


def check_environments(environments: EnvironmentSettings) -> None:
    """Refuse named environments that cannot run a task.

    Raises
    ------
    SettingsError
        There is no Python in it, or this application is not.
    """
    for kind in type(environments).model_fields:
        prefix = getattr(environments, kind)
        if prefix is None:
            continue
        python, key = prefix / "bin" / "python", f"resource.environments.{kind} = {str(prefix)!r}"
        if not is_shell_safe(prefix):
            # Its scripts name a task's program without quotes.
            raise SettingsError(f"{key}: RADICAL-Pilot takes no space, quote or dollar here; give a link to it")
        if not os.access(python, os.X_OK):
            raise SettingsError(f"{key}: there is no bin/python in it; give the prefix of a Python environment")
        shell = "\n".join([*build_pre_exec(()), f"exec {shlex.quote(str(python))} -c 'import entk_app.tasks'"])
        tried = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120, check=False)
        if tried.returncode:
            reason = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise SettingsError(f"{key}: it cannot import entk_app ({reason}): install this application into it too")


def build_command(spec: TaskSpec, root: Path, order: Path, python: Path) -> list[str]:
    """The command line of a task."""
    # 'python' would be looked up after the agent has changed PATH.
    return [str(python), "-m", "entk_app.tasks", spec.kind, str(root), str(order)]


def build_environment(
    environment: Mapping[str, str], spec: TaskSpec, private: Path, resource: Resource
) -> dict[str, str]:
    """Variables of a task.

    Parameters
    ----------
    environment : mapping
        The launcher's.
    spec : TaskSpec
        Its cores are the threads of numerical libraries; one without a GPU sees none.
    private : Path
        Folder for what Keras and matplotlib would write to the home.
    resource : Resource
    """
    chosen = {name: str(spec.cores) for name in _THREAD_VARIABLES}
    chosen["PYTHONUNBUFFERED"] = "1"
    chosen["KERAS_HOME"] = str(private / ".keras")
    chosen["MPLCONFIGDIR"] = str(private / "matplotlib")
    chosen["HDF5_USE_FILE_LOCKING"] = environment.get("HDF5_USE_FILE_LOCKING", "FALSE")
    if resource.is_emulated:
        chosen[placement.EMULATED_VARIABLE] = str(resource.node_cores)
    if not spec.gpus:
        chosen |= dict.fromkeys(_DEVICE_VARIABLES, "")
    elif not resource.places_devices:
        if spec.kind != "analyse":
            # An analysis has all cores of its node, whichever its device.
            chosen[placement.SHARES_VARIABLE] = str(resource.node_gpus)
        if spec.gpus < 1:
            sharers = round(1 / spec.gpus)
            chosen[placement.SHARERS_VARIABLE] = str(sharers)
            # For NVIDIA's MPS, where its daemon runs: OpenMM's kernels leave gaps, so twice a fair share is faster.
            chosen["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(min(100, 200 // sharers))
        is_here = resource.is_this_node and not resource.is_emulated
        if environment.get("CUDA_VISIBLE_DEVICES") and is_here:
            # RADICAL-Pilot numbers devices from 0: the task looks up which of the launcher's it was given.
            chosen[placement.DEVICES_VARIABLE] = environment["CUDA_VISIBLE_DEVICES"]
    # The user's own home, not the one that the agent was given.
    if "ENTK_APP_HOME" in environment:
        chosen["HOME"] = environment["ENTK_APP_HOME"]
    # RADICAL-Pilot writes them into a script between double quotes, as they are.
    return {name: re.sub(r'(["$`\\\\])', r"\\\1", value) for name, value in chosen.items()}


def is_shell_safe(path: Path | str) -> bool:
    """Whether RADICAL-Pilot's scripts, which do not quote paths, can take this one."""
    return re.fullmatch(r"[A-Za-z0-9._/+@%,=-]+", str(path)) is not None


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
