"""The screen of a status: it fits, it says what is left out, and it redraws until the campaign is at rest."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import CHECKOUT, prepare, tiny_settings
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from entk_app import cli, status_view
from entk_app.lock import CampaignLock
from entk_app.records import Decision, FrameRef, append_record
from entk_app.run_reader import RunReader
from entk_app.status import EndEstimate, FailedTask, SlotStatus, StatusReport, read_status
from entk_app.status_view import describe_in_a_line, draw_sparkline, render_status


@pytest.fixture(scope="module")
def report(tiny_campaign):
    return read_status(RunReader(tiny_campaign.layout)).model_copy(update={"run": "/runs/villin-quick-001"})


def make_slot(number, **changes):
    values = {
        "simulation": number, "origin": FrameRef(simulation=3, segment=1, frame=27), "origin_rmsd_angstrom": 5.0,
        "activity": "simulates", "task_frames": 700, "task_frames_expected": 1000, "running_frames": 700,
        "n_frames": 15_700, "time_ns": 785.0, "ns_per_day": 1012.3, "last_rmsd_angstrom": 9.25,
        "min_rmsd_angstrom": 100.0 - number, "frames_since_outlier": 1234, "frames_to_purge": 3766,
    }  # fmt: skip
    return SlotStatus(**{**values, **changes})


def draw(report, width, height=None):
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=False).print(render_status(report, width, height))
    return text.getvalue().splitlines()


@pytest.mark.staged("it counts frames, or names iterations")
def test_a_screen_says_what_matters(report):
    running = report.model_copy(
        update={
            "state": "running",
            "activity": "simulate, 1 of 2 done",
            "stop_reason": None,
            "message": "",
            "slots": (make_slot(7), make_slot(12, origin=None, activity="done", frames_to_purge=0)),
            "ends": (
                EndEstimate(limit="max_iterations", unix=report.unix + 600),
                EndEstimate(limit="walltime", unix=report.unix + 900),
            ),
            "n_failed_tasks": 1,
            "failed_tasks": (FailedTask(name="train.0002.latent3", logs=()),),
        }
    )
    text = "\n".join(draw(running, 120))
    for words in (
        "villin · calpha, 35 residues", "running · iteration 3 of 3 · simulate, 1 of 2 done",
        "in 10 min (max_iterations)", "(walltime), or when it folds",
        "lowest RMSD", "target 0.1 Å", "by iteration", "3/1/27", "start", "700/1000",
        "1234 ago", "in 3766", "due", "785", "1,012", "9.25", "93.00", "done", "(best)", "held-out error", "eps",
        "analysis of iteration 3", "1 tasks failed: train.0002.latent3", "logs: ",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize("n_slots", [1, 3, 16, 100])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (40, 40), (20, 60)])
def test_it_fits_the_terminal(report, n_slots, width, height):
    full = report.model_copy(update={"state": "running", "slots": tuple(make_slot(n) for n in range(n_slots))})
    lines = draw(full, width, height)
    assert max(map(len, lines)) <= width
    # A line is left for the prompt.
    assert len(lines) < height
    text = "\n".join(lines)
    if "more simulations" in " ".join(text.split()):
        n_left = int(text.split("… ")[1].split()[0])
        listed = [line for line in lines if line.strip() and line.split()[0].isdigit() and "785" in line]
        assert n_left + len(listed) == n_slots
        # The nearest to native are those of the highest numbers.
        assert listed[0].split()[0] == str(n_slots - 1)
    else:
        assert n_slots <= 16


def test_off_a_terminal_every_simulation_is_listed(report):
    full = report.model_copy(update={"slots": tuple(make_slot(n) for n in range(100))})
    assert len([line for line in draw(full, 80) if " 785 " in line]) == 100


def test_narrow_screens_keep_the_most_important_columns(report):
    full = report.model_copy(update={"state": "running", "slots": (make_slot(1),)})
    wide, narrow = ("\n".join(draw(full, width)) for width in (120, 40))
    titles = next(line for line in wide.splitlines() if line.startswith("sim ")).split("  ")
    assert [title.strip() for title in titles if title.strip()] == [
        "sim", "from", "ns", "ns/day", "frames", "last Å", "low Å", "outlier", "purge", "now",
    ]  # fmt: skip
    kept = next(line for line in narrow.splitlines() if line.startswith("sim "))
    assert kept.split() == ["sim", "from", "ns", "low", "Å", "now"]


def test_without_native_or_analysis_there_are_no_empty_columns(report):
    bare = report.model_copy(
        update={
            "has_native": False, "min_rmsd_angstrom": None, "min_rmsd_frame": None, "analysis": None, "models": (),
            "iterations": (), "slots": (make_slot(1, last_rmsd_angstrom=None, min_rmsd_angstrom=None),),
        }
    )  # fmt: skip
    text = "\n".join(draw(bare, 100))
    assert "no native structure: no RMSD" in text
    assert "Å" not in text and "outlier " not in text and "held-out" not in text


def test_a_dead_campaign_says_how_to_go_on(report):
    dead = report.model_copy(update={"state": "dead", "message": "its launcher is gone", "can_resume": True})
    text = "\n".join(draw(dead, 120))
    assert "its launcher is gone" in text and "entk-app run --resume /runs/villin-quick-001 goes on with it" in text


def test_a_sparkline_is_high_where_the_values_are():
    assert draw_sparkline([1.0, 8.0, 4.5], 10) == "▁█▅" or draw_sparkline([1.0, 8.0, 4.5], 10) == "▁█▄"
    assert draw_sparkline([3.0, 3.0], 10) == "▁▁"
    assert draw_sparkline([9, 9, 1, 9, 9, 9], 3) == "█▁█"  # the lowest of each pair


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.integers(1, 80))
def test_a_sparkline_is_as_wide_as_it_may_be_and_shows_the_lowest(values, width):
    bars = draw_sparkline(values, width)
    assert len(bars) == min(width, len(values))
    assert "▁" in bars


@pytest.mark.staged("it counts frames, or names iterations")
def test_a_line_changes_with_what_was_published_only(report):
    running = report.model_copy(update={"state": "running", "message": "", "activity": "simulate, 0 of 2 done"})
    later = running.model_copy(update={"unix": 9e9, "elapsed_s": 99.0, "n_frames_running": 17})
    assert describe_in_a_line(running) == describe_in_a_line(later)
    assert describe_in_a_line(running).startswith(
        "running: iteration 3, simulate, 0 of 2 done (135 frames, lowest RMSD"
    )


# The command.


@pytest.mark.staged("it counts frames, or names iterations")
def test_the_command_prints_a_screen_or_json(tiny_campaign, capsys):
    run = str(tiny_campaign.layout.root)
    assert cli.main(["status", run]) == 0
    assert "villin" in capsys.readouterr().out
    assert cli.main(["status", run, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["version"], printed["n_frames"]) == (1, 135)


@pytest.mark.parametrize("options", [[], ["--json"], ["--watch"]])
def test_where_there_is_no_campaign_it_is_exit_2(tmp_path, capsys, options):
    assert cli.main(["status", str(tmp_path), *options]) == 2
    captured = capsys.readouterr()
    assert "holds no campaign" in captured.err and not captured.out


def test_watch_and_json_do_not_go_together(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["status", str(tmp_path), "--watch", "--json"])
    assert caught.value.code == 2


def test_watching_off_a_terminal_prints_a_line_a_change_until_the_end(tmp_path, monkeypatch):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    CampaignLock.create(campaign.layout.lock)
    campaign.start()
    text, looks = io.StringIO(), []

    def wait(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            stop = Decision(index=1, iteration=1, next="stop", reason="folded", stop_reason="target_rmsd", unix=5e9)
            append_record(campaign.layout.decisions, stop)
            campaign.layout.lock.unlink()

    monkeypatch.setattr(status_view.time, "sleep", wait)
    status_view.watch_status(Console(file=text, force_terminal=False), RunReader(campaign.layout))
    lines = text.getvalue().splitlines()
    assert looks == [2.0] * 3
    assert [line.split(" ", 1)[1] for line in lines] == [
        "running: iteration 1, simulate, 0 of 2 done (0 frames)",
        "ended: iteration 1, folded (0 frames)",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_ctrl_c_ends_watching_and_nothing_else(tmp_path, monkeypatch, is_terminal):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    CampaignLock.create(campaign.layout.lock)
    campaign.start()
    text = io.StringIO()

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status_view.time, "sleep", interrupt)
    console = Console(file=text, force_terminal=is_terminal, width=80, height=24)
    status_view.watch_status(console, RunReader(campaign.layout))
    assert "running" in text.getvalue()


def test_a_watching_process_leaves_with_0_on_ctrl_c(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    CampaignLock.create(campaign.layout.lock)
    campaign.start()
    watching = subprocess.Popen(
        [sys.executable, "-m", "entk_app", "status", str(campaign.layout.root), "--watch"],
        cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert watching.stdout is not None
    assert "running" in watching.stdout.readline()
    time.sleep(0.3)
    watching.send_signal(signal.SIGINT)
    rest, _ = watching.communicate(timeout=30)
    assert (watching.returncode, rest) == (0, "")


def test_a_status_imports_no_heavy_library(tiny_campaign):
    script = (
        "import sys, entk_app.cli\n"
        f"assert entk_app.cli.main(['status', {str(tiny_campaign.layout.root)!r}]) == 0\n"
        "heavy = {'tensorflow', 'keras', 'openmm', 'radical', 'MDAnalysis', 'h5py', 'scipy', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_report_is_a_value(report):
    assert isinstance(report, StatusReport)
    with pytest.raises(ValueError, match="frozen"):
        report.n_frames = 1
