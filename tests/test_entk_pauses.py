"""The pauses in EnTK's loops: applied once, and the loops still do what they did."""

from __future__ import annotations

import queue
import time

import pytest

from entk_app import entk_pauses


@pytest.fixture
def applied(tmp_path, monkeypatch):
    monkeypatch.setenv("RADICAL_BASE", str(tmp_path))
    assert entk_pauses.apply_pauses()
    return None


def test_every_loop_is_patched_once(applied):
    from radical.entk.appman.wfprocessor import WFprocessor
    from radical.entk.execman.rp import ResourceManager, TaskManager

    before = [WFprocessor._create_workload, ResourceManager.get_resource_allocation_state, TaskManager._process_tasks]
    assert entk_pauses.apply_pauses()
    after = [WFprocessor._create_workload, ResourceManager.get_resource_allocation_state, TaskManager._process_tasks]
    assert before == after
    assert all(hasattr(function, "entk_app_original") for function in after)
    assert not any(hasattr(function.entk_app_original, "entk_app_original") for function in after)


def test_an_idle_look_for_work_sleeps_and_a_busy_one_does_not(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert entk_pauses._pause_when_idle(lambda self: ([], []))(None) == ([], [])
    assert slept == [entk_pauses.WORKLOAD_PAUSE_S]
    assert entk_pauses._pause_when_idle(lambda self: (["task"], ["stage"]))(None) == (["task"], ["stage"])
    assert len(slept) == 1


def test_the_state_of_the_pilot_is_passed_on(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert entk_pauses._pause_always(lambda self: "PMGR_ACTIVE")(None) == "PMGR_ACTIVE"


def test_the_task_queue_gives_up_early_and_passes_everything_else_on(monkeypatch):
    monkeypatch.setattr(entk_pauses, "QUEUE_TIMEOUT_S", 0.01)
    inner = queue.Queue()
    impatient = entk_pauses._ImpatientQueue(inner)
    with pytest.raises(queue.Empty):
        impatient.get(block=True, timeout=1000)
    inner.put("work")
    assert impatient.get(block=True, timeout=1000) == "work"
    impatient.task_done()
    assert inner.unfinished_tasks == 0
