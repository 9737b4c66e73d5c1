"""The EnTK graph: what a stage and a task carry, and a post_exec that never raises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import prepare, tiny_settings

from entk_app.campaign import Campaign, TaskSpec
from entk_app.errors import SettingsError
from entk_app.machine import divide_machine
from entk_app.plan import describe_plan
from entk_app.resources import find_resource
from entk_app.settings import EnvironmentSettings, ResourceSettings
from entk_app.workflow import AdaptiveWorkflow, build_environment, build_pre_exec, check_environments


@pytest.fixture
def radical_in(tmp_path, monkeypatch):
    # radical writes counters where it is told to, once it is imported.
    for name in ("RADICAL_BASE", "RADICAL_CONFIG_USER_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def workflow(tmp_path, *assignments, resource=None) -> AdaptiveWorkflow:
    resource = resource or ResourceSettings()
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged", *assignments))
    found = find_resource(resource)
    campaign = Campaign(
        campaign.layout, campaign.settings, divide_machine(campaign.settings, found.cores, found.gpus, found.nodes)
    )
    return AdaptiveWorkflow(campaign, campaign.layout, Path(sys.executable), found, campaign.begin())


def task_spec(kind="simulate", cores=3, gpus=0) -> TaskSpec:
    return TaskSpec(kind, "name", Path("order"), cores, gpus)


LOCAL = find_resource(ResourceSettings())
DGX2 = find_resource(ResourceSettings(label="ornl.dgx2"))
EMULATED = find_resource(ResourceSettings(label="local.dgx2_emulated"))
SLURM = find_resource(ResourceSettings(label="slurm.cluster", cores_per_node=96, gpus_per_node=16, submit=True))


def test_a_stage_has_a_task_a_slot_with_its_cores(radical_in):
    graph = workflow(radical_in)
    (stage,) = graph.pipelines[0].stages
    tasks = list(stage.tasks)
    assert len(tasks) == LOCAL.cores
    assert all(task.cpu_reqs["cpu_threads"] == 1 and not task.gpu_reqs["gpu_processes"] for task in tasks)
    assert all(task.executable == sys.executable for task in tasks)
    assert {task.arguments[2] for task in tasks} == {"simulate"}


def test_a_task_on_a_gpu_node_gets_one_gpu_and_its_share_of_the_cores(radical_in):
    graph = workflow(radical_in, resource=ResourceSettings(label="ornl.dgx2"))
    tasks = list(graph.pipelines[0].stages[0].tasks)
    assert len(tasks) == 16
    assert all(task.gpu_reqs["gpu_processes"] == 1 and task.gpu_reqs["gpu_process_type"] == "CUDA" for task in tasks)
    assert sum(task.cpu_reqs["cpu_threads"] for task in tasks) == 96


@pytest.mark.parametrize(("per_gpu", "part", "percentage"), [(2, 0.5, "100"), (3, 0.333333, "66"), (4, 0.25, "50")])
def test_simulations_that_share_a_gpu_ask_for_a_part_of_it(radical_in, per_gpu, part, percentage):
    shared = workflow(radical_in, f"resource.sims_per_gpu={per_gpu}", resource=ResourceSettings(label="ornl.dgx2"))
    tasks = list(shared.pipelines[0].stages[0].tasks)
    assert len(tasks) == 16 * per_gpu
    assert {task.gpu_reqs["gpu_processes"] for task in tasks} == {part}
    assert per_gpu * part <= 1
    assert sum(task.cpu_reqs["cpu_threads"] for task in tasks) == 96
    assert {task.environment["ENTK_APP_SHARERS"] for task in tasks} == {str(per_gpu)}
    assert {task.environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] for task in tasks} == {percentage}
    # In words, for a dry run.
    lines = describe_plan(shared.campaign.settings, DGX2, shared.campaign.machine, shared.layout)
    row = next(line.split() for line in lines if line.split()[0] == "simulate")
    assert row[:2] == ["simulate", str(16 * per_gpu)] and row[4] == f"{part:.3g}"
    assert any(f"{per_gpu} simulations share a GPU" in line for line in lines)


def test_trainings_share_their_gpu_with_nobody(tmp_path):
    given = build_environment({}, task_spec("train", gpus=1), tmp_path, DGX2)
    assert not {"ENTK_APP_SHARERS", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"} & set(given)


def test_under_srun_the_device_is_slurms_to_give(radical_in):
    asked = ResourceSettings(label="slurm.cluster", cores_per_node=96, gpus_per_node=16, submit=True)
    tasks = list(workflow(radical_in, resource=asked).pipelines[0].stages[0].tasks)
    assert all(task.gpu_reqs["gpu_processes"] == 1 and not task.gpu_reqs["gpu_process_type"] for task in tasks)


def test_a_stage_of_its_own_environment_runs_its_python(radical_in, tmp_path):
    graph = workflow(radical_in, f"resource.environments.simulate={tmp_path}")
    assert {task.executable for task in graph.pipelines[0].stages[0].tasks} == {str(tmp_path / "bin" / "python")}


def test_an_environment_that_cannot_run_tasks_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"resource.environments.train = .*there is no bin/python"):
        check_environments(EnvironmentSettings(train=tmp_path))
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'numpy'\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(SettingsError, match="cannot import entk_app .*No module named 'numpy'"):
        check_environments(EnvironmentSettings(train=tmp_path))
    check_environments(EnvironmentSettings(analyse=Path(sys.prefix)))


def test_an_environment_that_radicals_scripts_cannot_name_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="takes no space, quote or dollar"):
        check_environments(EnvironmentSettings(train=tmp_path / "my env"))


@pytest.mark.parametrize("home", ["/home/me", "/a b", '/it"s', "/$HOME", "/`id`", "/back\\slash", "/$(id)"])
def test_a_variable_reaches_a_task_as_it_is(tmp_path, home):
    given = build_environment({"ENTK_APP_HOME": home}, task_spec(), tmp_path, LOCAL)["HOME"]
    # As RADICAL-Pilot writes its scripts.
    script = f'export HOME="{given}"\nprintf %s "$HOME"\n'
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == home


@pytest.mark.parametrize("error", [ValueError("the decision failed"), SystemExit(1)])
def test_post_exec_keeps_what_went_wrong_and_never_raises(radical_in, monkeypatch, error):
    graph = workflow(radical_in)

    def fail(ended):
        raise error

    monkeypatch.setattr(graph.campaign, "follow", fail)
    graph.pipelines[0].stages[0].post_exec()
    assert graph.error is error
    assert graph.campaign.layout.stop_request.exists()  # what else runs ends in order
    assert len(graph.pipelines[0].stages) == 1


def test_post_exec_decides_nothing_once_the_campaign_is_being_ended(radical_in, monkeypatch):
    graph = workflow(radical_in)
    monkeypatch.setattr(graph.campaign, "follow", lambda ended: pytest.fail("must not decide"))
    graph.campaign.layout.stop_request.touch()
    graph.pipelines[0].stages[0].post_exec()
    assert graph.error is None
    assert len(graph.pipelines[0].stages) == 1


def test_post_exec_appends_the_next_stage(radical_in):
    from entk_app.tasks import run_task

    graph = workflow(radical_in)
    for task in graph.campaign.stage.tasks:
        run_task(task.kind, graph.campaign.layout.root, task.order)
    graph.pipelines[0].stages[0].post_exec()
    assert [len(stage.tasks) for stage in graph.pipelines[0].stages] == [2, 2]
    assert {task.arguments[2] for task in graph.pipelines[0].stages[1].tasks} == {"train"}


def concurrent_graph(tmp_path, monkeypatch, *answers):
    """Two pipelines, and what the campaign answers when their stages end, one after the other."""
    from radical import entk

    campaign = prepare(tmp_path / "run", tiny_settings("coupling=concurrent"))
    graph = AdaptiveWorkflow(campaign, campaign.layout, Path(sys.executable), LOCAL, campaign.begin())
    monkeypatch.setattr(campaign, "follow", lambda ended: answers[len(asked.append(ended) or asked) - 1])
    asked = []
    return graph, campaign.stages[0], entk.states.SUSPENDED


def test_a_pipeline_without_work_is_suspended_until_there_is_some(radical_in, monkeypatch):
    graph, stage, suspended = concurrent_graph(radical_in, monkeypatch, ())
    one, other = graph.pipelines
    assert not one.stages[0].post_exec()
    assert (one.state, len(one.stages)) == (suspended, 1)
    monkeypatch.setattr(graph.campaign, "follow", lambda ended: (stage, stage))
    assert other.stages[0].post_exec() == [one.uid]
    assert (len(one.stages), len(other.stages)) == (2, 2)
    assert suspended not in (one.state, other.state)


@pytest.mark.parametrize("how", ["over", "asked to end", "broken"])
def test_at_the_end_no_pipeline_is_left_suspended(radical_in, monkeypatch, how):
    graph, _, suspended = concurrent_graph(radical_in, monkeypatch, ())
    one, other = graph.pipelines
    one.stages[0].post_exec()
    if how == "asked to end":
        graph.campaign.layout.stop_request.touch()

    def follow(ended):
        if how == "broken":
            raise ValueError(how)
        graph.campaign.end("max_iterations", "over")
        return ()

    monkeypatch.setattr(graph.campaign, "follow", follow)
    assert other.stages[0].post_exec() == [one.uid]
    assert (one.state != suspended, other.state != suspended) == (True, True)
    assert (len(one.stages), len(other.stages)) == (1, 1)


def test_the_environment_of_a_task(tmp_path):
    launcher = {"ENTK_APP_HOME": "/home/me", "PYTHONPATH": "/elsewhere"}
    chosen = build_environment(launcher, task_spec(), tmp_path, LOCAL)
    assert chosen["OMP_NUM_THREADS"] == "3"
    assert chosen["HOME"] == "/home/me"
    assert chosen["KERAS_HOME"].startswith(str(tmp_path))
    assert "PYTHONPATH" not in chosen


def test_a_task_without_a_gpu_sees_none_and_one_with_a_gpu_knows_the_launchers(tmp_path):
    launcher = {"CUDA_VISIBLE_DEVICES": "2,3"}
    alone = build_environment(launcher, task_spec(gpus=0), tmp_path, LOCAL)
    assert alone["CUDA_VISIBLE_DEVICES"] == alone["HIP_VISIBLE_DEVICES"] == ""
    given = build_environment(launcher, task_spec(gpus=1), tmp_path, DGX2)
    assert "CUDA_VISIBLE_DEVICES" not in given  # RADICAL-Pilot sets it
    assert (given["ENTK_APP_DEVICES"], given["ENTK_APP_NODE_GPUS"]) == ("2,3", "16")
    assert "ENTK_APP_EMULATED_CORES" not in given
    # An analysis has the whole node, whichever its device.
    assert "ENTK_APP_NODE_GPUS" not in build_environment(launcher, task_spec("analyse", gpus=1), tmp_path, DGX2)


def test_devices_that_slurm_gives_are_left_alone(tmp_path):
    given = build_environment({"CUDA_VISIBLE_DEVICES": "2,3"}, task_spec(gpus=1), tmp_path, SLURM)
    assert not {"ENTK_APP_DEVICES", "ENTK_APP_NODE_GPUS", "CUDA_VISIBLE_DEVICES"} & set(given)


def test_the_login_nodes_devices_are_not_those_of_a_queued_pilot(tmp_path):
    queued = find_resource(ResourceSettings(label="ornl.dgx2", submit=True))
    given = build_environment({"CUDA_VISIBLE_DEVICES": "0"}, task_spec(gpus=1), tmp_path, queued)
    assert "ENTK_APP_DEVICES" not in given


def test_an_emulated_device_is_not_looked_up_among_real_ones(tmp_path):
    given = build_environment({"CUDA_VISIBLE_DEVICES": "0"}, task_spec(gpus=1), tmp_path, EMULATED)
    assert given["ENTK_APP_EMULATED_CORES"] == "96"
    assert "ENTK_APP_DEVICES" not in given


def test_pre_exec_runs_the_users_lines_first_and_drops_the_agents_pythonpath():
    lines = build_pre_exec(("module load cuda",))
    assert lines[:2] == ["module load cuda", "unset PYTHONPATH"]
