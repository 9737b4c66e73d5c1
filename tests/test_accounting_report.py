"""``RUN/accounting`` and what the command prints."""

from __future__ import annotations

import csv
import json

import pytest
from check_accounting import check_accounting
from written_pilot import WrittenPilot, WrittenTask

from entk_app import cli
from entk_app.accounting import CampaignAccount
from entk_app.layout import RunLayout
from entk_app.records import read_record


@pytest.fixture
def run(tmp_path):
    """A run folder with two pilots, one with GPUs cut off while a task ran."""
    layout = RunLayout(tmp_path / "run [1]")
    tasks = [
        WrittenTask("task.000001", "simulate.0001.0000.0000", 20, 21, 41, 42, gpus=(0,), stage="simulate.0001.0001"),
        WrittenTask("task.000000", "simulate.0001.0001.0000", 20, 22, 52, 53, (2,), (1,), stage="simulate.0001.0001"),
    ]
    WrittenPilot(tasks=tasks, gpus=2).write(layout)
    cut = WrittenTask("task.000000", "simulate.0001.0002.0000", 20, 21, gpus=(1,), publishes=False, stage="late")
    WrittenPilot("re.session.0002", start=2000.0, tasks=[cut], gpus=2, stop=None).write(layout, client=False)
    return layout.root


def test_the_files_say_the_same_as_each_other(run):
    measured = check_accounting(run)
    assert measured["whole"] * 3600 == pytest.approx(4 * 100 + 4 * 95)
    assert measured["in_use"] * 3600 == pytest.approx(20 + 30 + 74)
    assert measured["by_records"] * 3600 == pytest.approx(19 + 29)
    result = read_record(CampaignAccount, run / "accounting" / "pilot.json")
    assert [pilot.state for pilot in result.pilots] == ["ended", "cut off"]
    assert result.gpu_hours.whole * 3600 == pytest.approx(2 * 195)
    assert result.pilots[0].requested_gpu_hours == pytest.approx(2 * 10 / 60)
    assert result.requested_core_hours == pytest.approx(2 * 4 * 10 / 60)
    rows = list(csv.DictReader((run / "accounting" / "tasks.csv").open()))
    assert [(row["pilot"], row["name"], row["device_ids"], row["state"]) for row in rows] == [
        ("1", "simulate.0001.0000.0000", "0", "done"),
        ("1", "simulate.0001.0001.0000", "1", "done"),
        ("2", "simulate.0001.0002.0000", "1", "failed"),
    ]
    assert sorted(path.name for path in (run / "accounting").iterdir()) == [
        "gantt.png", "gantt.svg", "pilot.json", "tasks.csv",
    ]  # fmt: skip


def test_a_record_of_no_task_is_found_out(run):
    path = run / "simulations" / "0001" / "segment-0000" / "segment.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "unix_start": 1.0, "unix_end": 2.0}))
    with pytest.raises(AssertionError, match="no task"):
        check_accounting(run)


def test_the_command_prints_plain_tables_and_where_the_files_are(run, capsys):
    assert cli.main(["accounting", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "…" not in printed
    lines = printed.splitlines()
    assert lines[0] == "pilot 1: site.machine, asked 4 cores, 2 GPUs for 0:10:00 (0.6667 core-hours, 0.3333 GPU-hours)"
    assert lines[1].endswith("was cut off: counted until its last trace")
    shares = [line.split()[-4:] for line in lines if line.startswith((" sum of the parts", " whole"))]
    assert shares == [["0.2167", "100.00", "0.1083", "100.00"]] * 2
    assert f"written: {run / 'accounting'}: pilot.json, tasks.csv, gantt.svg, gantt.png" in printed
    assert max(len(line.rstrip()) for line in lines if line.startswith(" ")) <= 80


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "there is no run folder"), (".", "is not a run folder"), ("new", "no pilot has left a trace")],
)
def test_what_cannot_be_accounted_for_is_exit_2_and_a_sentence(name, words, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "settings.yaml").write_text("{}")
    assert cli.main(["accounting", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("accounting"))


def test_a_folder_that_cannot_be_written_is_exit_2_and_a_sentence(run, capsys):
    (run / "accounting").write_text("in the way")
    assert cli.main(["accounting", str(run)]) == 2
    assert "cannot write" in capsys.readouterr().err
