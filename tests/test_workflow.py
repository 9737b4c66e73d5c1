"""The EnTK graph: what a stage and a task carry, and a post_exec that never raises."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conftest import prepare, tiny_settings

from entk_app.campaign import Campaign, divide_machine
from entk_app.workflow import AdaptiveWorkflow, build_environment, build_pre_exec


@pytest.fixture
def radical_in(tmp_path, monkeypatch):
    # radical writes counters where it is told to, once it is imported.
    for name in ("RADICAL_BASE", "RADICAL_CONFIG_USER_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def workflow(tmp_path, cores=2, gpus=0, *assignments) -> AdaptiveWorkflow:
    campaign = prepare(tmp_path / "run", tiny_settings(*assignments))
    machine = divide_machine(campaign.settings, cores, gpus)
    campaign = Campaign(campaign.layout, campaign.settings, machine)
    return AdaptiveWorkflow(campaign, campaign.layout, Path(sys.executable))


def test_a_stage_has_a_task_a_slot_with_its_cores(radical_in):
    graph = workflow(radical_in, 4)
    (stage,) = graph.pipeline.stages
    tasks = list(stage.tasks)
    assert len(tasks) == 4
    assert all(task.cpu_reqs["cpu_threads"] == 1 and not task.gpu_reqs["gpu_processes"] for task in tasks)
    assert all(task.executable == sys.executable for task in tasks)
    assert {task.arguments[2] for task in tasks} == {"simulate"}


def test_a_task_on_a_gpu_node_gets_one_gpu_and_its_share_of_the_cores(radical_in):
    graph = workflow(radical_in, 96, 16)
    tasks = list(graph.pipeline.stages[0].tasks)
    assert len(tasks) == 16
    assert all(task.gpu_reqs["gpu_processes"] == 1 and task.gpu_reqs["gpu_process_type"] == "CUDA" for task in tasks)
    assert sum(task.cpu_reqs["cpu_threads"] for task in tasks) == 96


def test_post_exec_keeps_what_went_wrong_and_never_raises(radical_in, monkeypatch):
    graph = workflow(radical_in)

    for error in (ValueError("the decision failed"), SystemExit(1)):

        def fail(error=error):
            raise error

        monkeypatch.setattr(graph.campaign, "advance", fail)
        graph.pipeline.stages[0].post_exec()
        assert graph.error is error
    assert len(graph.pipeline.stages) == 1


def test_post_exec_appends_the_next_stage(radical_in):
    from entk_app.tasks import run_task

    graph = workflow(radical_in)
    for task in graph.campaign.stage.tasks:
        run_task(task.kind, graph.campaign.layout.root, task.order)
    graph.pipeline.stages[0].post_exec()
    assert [len(stage.tasks) for stage in graph.pipeline.stages] == [2, 2]
    assert {task.arguments[2] for task in graph.pipeline.stages[1].tasks} == {"train"}


def test_the_environment_of_a_task(tmp_path):
    chosen = build_environment({"ENTK_APP_HOME": "/home/me", "PYTHONPATH": "/elsewhere"}, 3, tmp_path)
    assert chosen["OMP_NUM_THREADS"] == "3"
    assert chosen["HOME"] == "/home/me"
    assert chosen["KERAS_HOME"].startswith(str(tmp_path))
    assert "PYTHONPATH" not in chosen


def test_a_task_without_a_gpu_sees_none_and_one_with_a_gpu_knows_the_launchers(tmp_path):
    alone = build_environment({"CUDA_VISIBLE_DEVICES": "2,3"}, 1, tmp_path, gpus=0)
    assert alone["CUDA_VISIBLE_DEVICES"] == alone["HIP_VISIBLE_DEVICES"] == ""
    given = build_environment({"CUDA_VISIBLE_DEVICES": "2,3"}, 1, tmp_path, gpus=1)
    assert "CUDA_VISIBLE_DEVICES" not in given  # RADICAL-Pilot sets it
    assert given["ENTK_APP_DEVICES"] == "2,3"


@pytest.mark.parametrize(
    ("own", "assigned", "expected"),
    [("2,3", "1", "3"), ("GPU-a,GPU-b", "0", "GPU-a"), ("", "1", "1"), ("4,5", "0,1", "4,5")],
)
def test_device_numbers_become_the_launchers_own(monkeypatch, own, assigned, expected):
    from entk_app.tasks.__main__ import _choose_device

    monkeypatch.setenv("ENTK_APP_DEVICES", own)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", assigned)
    _choose_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_pre_exec_runs_the_users_lines_first_and_drops_the_agents_pythonpath():
    lines = build_pre_exec(("module load cuda",))
    assert lines[:2] == ["module load cuda", "unset PYTHONPATH"]
