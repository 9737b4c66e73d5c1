"""The EnTK graph: what a stage and a task carry, and a post_exec that never raises."""

from __future__ import annotations

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

    def fail():
        raise ValueError("the decision failed")

    monkeypatch.setattr(graph.campaign, "advance", fail)
    graph.pipeline.stages[0].post_exec()
    assert str(graph.error) == "the decision failed"
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


def test_pre_exec_runs_the_users_lines_first_and_drops_the_agents_pythonpath():
    lines = build_pre_exec(("module load cuda",))
    assert lines[:2] == ["module load cuda", "unset PYTHONPATH"]
