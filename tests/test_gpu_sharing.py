"""RADICAL-Pilot's own scheduler, with and without the hook: how fractions of a GPU are booked and placed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import CHECKOUT

from entk_app import gpu_sharing

#: Asks the installed scheduler for a sequence of tasks on nodes of 4 GPUs; a number is a GPU fraction, ["end", n]
#: ends the n-th task. Prints (node, device) of each task, and what is booked in the end.
SCRIPT = """
import json, sys
from unittest import mock
from radical.pilot.agent.scheduler.continuous import Continuous

scheduler = Continuous.__new__(Continuous)
scheduler.__dict__.update(_log=mock.MagicMock(), _colo_history={}, _tagged_nodes=set(), _scattered=True, _node_offset=0)
scheduler._partition_ids, scheduler._rm = None, mock.MagicMock()
scheduler._rm.info.__dict__.update(cores_per_node=64, gpus_per_node=4, lfs_per_node=0, mem_per_node=0)
nodes, asked = json.loads(sys.argv[1])
scheduler.nodes = [
    {"index": i, "name": f"n{i}", "cores": [0.0] * 64, "gpus": [0.0] * 4, "lfs": 0, "mem": 0} for i in range(nodes)
]
held, places = [], []
for step in asked:
    if isinstance(step, list):
        scheduler._change_slot_states(held[step[1]], 0.0)
        continue
    needs = dict(ranks=1, ranks_per_node=None, cores_per_rank=1, gpus_per_rank=step, lfs_per_rank=0, mem_per_rank=0)
    slots, _ = scheduler.schedule_task({"uid": "task", "description": {**needs, "tags": {}}})
    held.append(slots)
    places.append(slots and [slots[0]["node_index"], slots[0]["gpus"][0]["index"]])
    if slots:
        scheduler._change_slot_states(slots, 1.0)
print(json.dumps([places, [node["gpus"] for node in scheduler.nodes]]))
"""


@pytest.fixture
def place(tmp_path):
    """Place tasks in a process of its own, started from a shell as RADICAL-Pilot starts its agent."""

    def run(asked, nodes=1, hook=True):
        line = gpu_sharing.write_hook(tmp_path / "hook") if hook else "true"
        done = subprocess.run(
            ["bash", "-c", f'{line}; exec "$0" -c "$1" "$2"', sys.executable, SCRIPT, json.dumps([nodes, asked])],
            env={**os.environ, "RADICAL_BASE": str(tmp_path), "PYTHONPATH": str(CHECKOUT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_without_the_hook_a_fraction_takes_a_whole_device(place):
    places, _ = place([0.5] * 5, hook=False)
    assert places == [[0, 0], [0, 1], [0, 2], [0, 3], None], "radical.pilot shares devices itself: no hook is needed"


@pytest.mark.parametrize("n", [2, 3, 7])
def test_as_many_tasks_as_asked_for_share_a_device_and_leave_it_free(place, n):
    part = int(1e6 / n) / 1e6
    places, booked = place([part] * (4 * n + 1) + [["end", i] for i in range(4 * n)])
    assert places == [[0, device] for device in range(4) for _ in range(n)] + [None]
    assert booked == [[0.0] * 4]


def test_whole_devices_are_taken_from_the_other_end(place):
    places, booked = place([1.0, 0.5, 1.0, 0.5, 0.5, 0.5, 1.0])
    assert places == [[0, 3], [0, 0], [0, 2], [0, 0], [0, 1], [0, 1], None]
    assert booked == [[1.0, 1.0, 1.0, 1.0]]


def test_gaps_close_from_the_first_device_on_until_a_whole_one_is_free(place):
    # Eight halves; two of different devices end for good, and the simulations of the last device go on elsewhere.
    places, booked = place([0.5] * 8 + [["end", 1], ["end", 3], ["end", 6], 0.5, 1.0, ["end", 7], 0.5, 1.0])
    assert places[8:] == [[0, 0], None, [0, 1], [0, 3]]
    assert booked == [[1.0, 1.0, 1.0, 1.0]]


def test_over_nodes_fractions_fill_the_first_and_whole_devices_the_last(place):
    places, _ = place([0.5, 1.0, 0.5, 1.0, *[0.5] * 7], nodes=2)
    assert places[:4] == [[0, 0], [1, 3], [0, 0], [1, 2]]
    assert places[9:] == [[0, 3], [1, 0]]


def test_the_hook_of_sockets_still_runs_behind_it(tmp_path):
    variables = {"PYTHONPATH": str(tmp_path / "loopback")}
    (tmp_path / "loopback").mkdir()
    (tmp_path / "loopback" / "sitecustomize.py").write_text((CHECKOUT / "entk_app" / "loopback.py").read_text())
    line = gpu_sharing.write_hook(tmp_path / "sharing")
    script = "import sys; print(sorted(f.name for f in sys.meta_path if type(f).__name__ == '_Finder'))"
    done = subprocess.run(
        ["bash", "-c", f'{line}; exec "$0" -c "$1"', sys.executable, script],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str([gpu_sharing.SCHEDULER, "zmq"]), done.stderr
