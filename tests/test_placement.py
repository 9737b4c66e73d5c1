"""Which device and cores a task takes: RADICAL-Pilot's numbers become the launcher's own, and the record tells."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st

from entk_app import placement
from entk_app.errors import DeviceError


@given(cores=st.integers(1, 200), gpus=st.integers(1, 16))
def test_the_shares_of_all_devices_are_all_cores_once(cores, gpus):
    allowed = [3 * core for core in range(cores)]
    shares = [placement.find_share(allowed, [str(device)], str(gpus)) for device in range(gpus)]
    if cores < gpus:
        assert shares == [[]] * gpus
    else:
        assert [core for share in shares for core in share] == allowed
        assert {len(share) for share in shares} <= {cores // gpus, cores // gpus + 1}


@pytest.mark.parametrize(("assigned", "shares"), [([], "4"), (["1"], None), (["0", "1"], "4"), (["GPU-a"], "4")])
def test_without_one_device_of_a_node_there_is_no_share(assigned, shares):
    assert placement.find_share(range(8), assigned, shares) == []


def test_tasks_that_share_a_device_divide_its_cores_as_long_as_they_live(monkeypatch):
    variables = {
        "CUDA_VISIBLE_DEVICES": "1", "ENTK_APP_NODE_GPUS": "2", "ENTK_APP_EMULATED_CORES": "10",
        "ENTK_APP_SHARERS": "2", "RP_SESSION_ID": f"test.{os.getpid()}",
    }  # fmt: skip
    monkeypatch.setattr(placement, "_parts", [])
    first = placement.take_place(dict(variables))
    second = placement.take_place(dict(variables))
    assert (first.devices, first.cores, first.sharers) == (("1",), (5, 6, 7), 2)
    assert (second.devices, second.cores, second.sharers) == (("1",), (8, 9), 2)
    # Of another device, or another campaign, nothing is taken yet.
    assert placement.take_place({**variables, "CUDA_VISIBLE_DEVICES": "0"}).cores == (0, 1, 2)
    assert placement.take_place({**variables, "RP_SESSION_ID": f"other.{os.getpid()}"}).cores == (5, 6, 7)
    # More than were to share it: the cores are not its own, and the record says so.
    assert placement.take_place(dict(variables)).cores == (5, 6, 7, 8, 9)
    placement._parts[0].close()
    assert placement.take_place(dict(variables)).cores == (5, 6, 7)


def test_a_part_is_free_once_its_process_is_gone():
    session = f"gone.{os.getpid()}"
    code = f"from entk_app.placement import claim_part; import time; print(claim_part({session!r}, '0', 2), flush=True)"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep(60)"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "0\n"
        done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        assert done.stdout == "1\n"
        process.kill()
    assert placement.claim_part(session, "0", 2) == 0
    placement._parts.pop().close()


@pytest.mark.parametrize(
    ("own", "assigned", "expected"),
    [("2,3", "1", "3"), ("GPU-a,GPU-b", "0", "GPU-a"), ("", "1", "1"), ("4,5", "0,1", "4,5"), ("2,3", "", "")],
)
def test_device_numbers_become_the_launchers_own(own, assigned, expected):
    variables = {"ENTK_APP_DEVICES": own, "CUDA_VISIBLE_DEVICES": assigned}
    place = placement.take_place(variables)
    assert variables["CUDA_VISIBLE_DEVICES"] == expected
    assert place.device == (expected or None)


def test_a_device_that_the_launcher_had_not_is_an_error():
    with pytest.raises(DeviceError, match="given GPU 3, the launcher had 4,5 only"):
        placement.take_place({"ENTK_APP_DEVICES": "4,5", "CUDA_VISIBLE_DEVICES": "3"})


def test_an_emulated_node_has_the_cores_that_it_pretends(monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pytest.fail("must not be bound"))
    variables = {"CUDA_VISIBLE_DEVICES": "15", "ENTK_APP_NODE_GPUS": "16", "ENTK_APP_EMULATED_CORES": "96"}
    place = placement.take_place(variables | {"RP_TASK_ID": "task.000015", "RP_SESSION_ID": "s"})
    assert (place.devices, place.cores, place.pinned) == (("15",), tuple(range(90, 96)), False)
    assert (place.task, place.session, place.emulated) == ("task.000015", "s", True)


def test_a_real_task_is_bound_to_the_cores_of_its_device(monkeypatch):
    bound = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8, 16)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: bound.append(list(cores)))
    monkeypatch.setattr(placement, "_query_uuids", dict)
    place = placement.take_place({"CUDA_VISIBLE_DEVICES": "1", "ENTK_APP_NODE_GPUS": "4"})
    assert bound == [[10, 11]]
    assert (place.cores, place.pinned) == ((10, 11), True)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: there is nothing to choose")
def test_binding_holds_in_a_process():
    code = "from entk_app.placement import take_place; import os; print(take_place().cores, os.sched_getaffinity(0))"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "1", "ENTK_APP_NODE_GPUS": "2", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    cores, affinity = done.stdout.strip().replace("(", "").replace("{", "").rstrip("})\n").split(") ")
    allowed = sorted(os.sched_getaffinity(0))
    expected = allowed[(len(allowed) + 1) // 2 :]
    assert [int(core) for core in cores.split(",") if core.strip()] == expected
    assert [int(core) for core in affinity.split(",")] == expected


def test_without_a_device_a_task_may_use_the_cores_of_its_process():
    place = placement.take_place({})
    assert (place.devices, place.device, place.pinned) == ((), None, False)
    assert set(place.cores) == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("visible", "uuids", "variables", "expected"),
    [
        (["3"], {"3": "GPU-x"}, {}, ["GPU-x"]),
        (["GPU-y"], {}, {}, ["GPU-y"]),
        (["0"], {"0": "GPU-z"}, {"SLURM_STEP_GPUS": "7"}, ["GPU-z"]),
        (["0"], {}, {"SLURM_STEP_GPUS": "7"}, ["7"]),  # a step that is confined sees number 0
        (["0", "1"], {}, {"SLURM_STEP_GPUS": "7"}, ["0", "1"]),
        (["5"], {"0": "GPU-x"}, {}, ["5"]),
    ],
)
def test_a_device_is_named_by_its_uuid_or_the_nodes_number(monkeypatch, visible, uuids, variables, expected):
    monkeypatch.setattr(placement, "_query_uuids", lambda: uuids)
    assert placement.name_devices(visible, variables) == expected


def test_the_driver_is_asked_for_uuids(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '0, GPU-aaa'\necho '1, GPU-bbb'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert placement.name_devices(["1"], {}) == ["GPU-bbb"]
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert placement.name_devices(["1"], {}) == ["1"]
