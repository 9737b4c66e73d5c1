"""RADICAL-Pilot's files, line by line."""

from __future__ import annotations

import json

import pytest

from entk_app.layout import RunLayout
from entk_app.profiles import find_task_sandboxes, read_exit_code, read_pilot_lines, read_profile, read_stage_name


def test_a_last_line_that_was_cut_off_is_no_event(tmp_path):
    path = tmp_path / "x.prof"
    path.write_text("#time,event\n1.0,a,c,t,u,S,m,with,commas\nnonsense\n2.0,b,c,t,task.00")
    (event,) = read_profile(path)
    assert (event.unix, event.name, event.uid, event.state, event.message) == (1.0, "a", "u", "S", "m,with,commas")
    assert read_profile(tmp_path / "missing.prof") == []


def test_pilots_of_one_session_are_told_apart_by_their_order(tmp_path):
    path = tmp_path / "pilots.jsonl"
    path.write_text("".join(json.dumps({"number": n, "session": "s", "cores": 10 * n}) + "\n" for n in (1, 2)))
    assert {key: line["cores"] for key, line in read_pilot_lines(path).items()} == {
        ("s", "pilot.0000"): 10, ("s", "pilot.0001"): 20,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"exit_code": 0, "state": "DONE"}, 0),
        ({"exit_code": None, "exception_detail": "exit code: 139", "state": "FAILED"}, 139),
        ({"exit_code": None, "exception_detail": None, "state": "FAILED"}, 1),
        ({}, None),
    ],
)
def test_exit_codes_are_found_where_radical_pilot_says_them(document, code):
    assert read_exit_code(document) == code


def test_a_stage_is_read_from_the_name_that_entk_gives_a_task():
    assert read_stage_name("task.000001,train.0001.latent3,stage.0001,train.0001,pipeline.0000,x") == "train.0001"
    assert read_stage_name("task.000001") is None


def test_a_tasks_script_tells_what_it_got(tmp_path):
    layout = RunLayout(tmp_path)
    folder = layout.task_sandbox("train.0001.latent3")
    folder.mkdir(parents=True)
    (folder / "task.000007.exec.sh").write_text(
        'export RP_TASK_NAME="task.000007,train.0001.latent3,stage.0001,train.0001,pipeline.0000,campaign"\n'
        'export RP_PILOT_ID="pilot.0001"\nexport RP_SESSION_ID="s"\nexport RP_CORES_PER_RANK=3\n'
        "export RP_GPUS_PER_RANK=2\nexport RP_RANKS=2\n"
        'case "$RP_RANK" in\n    0)\n        export CUDA_VISIBLE_DEVICES=1,3 || rp_error pre_exec\n'
    )
    (sandbox,) = find_task_sandboxes(layout)["task.000007"]
    assert (sandbox.name, sandbox.session, sandbox.pilot) == ("train.0001.latent3", "s", "pilot.0001")
    assert (sandbox.stage, sandbox.cores, sandbox.gpus, sandbox.gpu_ids) == ("train.0001", 6.0, 4.0, (1, 3))
    assert sandbox.events == ()
