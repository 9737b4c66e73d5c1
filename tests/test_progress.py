"""The progress line: what it says on a terminal and elsewhere."""

from __future__ import annotations

import io

from conftest import prepare, tiny_settings
from rich.console import Console

from entk_app.progress import Progress, _clock
from entk_app.records import SegmentProgress, write_record


def test_off_a_terminal_one_plain_line_a_decision(tmp_path):
    text = io.StringIO()
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    with Progress(Console(file=text, force_terminal=False), campaign):
        campaign.start()
        campaign.end("failed", "for the test")
    lines = text.getvalue().splitlines()
    assert len(lines) == 2
    assert "iteration 1: simulate: 2 simulations start (0 frames)" in lines[0]
    assert "stop: for the test" in lines[1]


def test_on_a_terminal_the_line_counts_running_segments(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    progress = Progress(Console(file=io.StringIO(), force_terminal=True), campaign)
    assert "starting the pilot" in progress._line().plain
    campaign.start()
    assert "starting the pilot" in progress._line().plain  # decided, but no task has begun
    for simulation, rmsd in ((0, 7.5), (1, 6.25)):
        write_record(
            campaign.layout.segment(simulation, 0).in_work().progress,
            SegmentProgress(simulation=simulation, segment=0, n_frames=20, min_rmsd_angstrom=rmsd, ns_per_day=1.0),
        )
    line = progress._line().plain
    for words in ("iteration 1", "simulate", "40 frames", "lowest RMSD 6.25 Å", "2 alive", "0 purged"):
        assert words in line
    assert len(line) <= 80


def test_a_segment_that_is_whole_already_still_counts(tmp_path):
    from entk_app.tasks import run_task

    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    progress = Progress(Console(file=io.StringIO(), force_terminal=True), campaign)
    task = campaign.start().tasks[0]
    run_task("simulate", campaign.layout.root, task.order)
    assert " 15 frames" in progress._line().plain
    campaign.end("failed", "for the test")
    assert "closing the pilot" in progress._line().plain


def test_the_clock():
    assert [_clock(seconds) for seconds in (0, 61.9, 3600 * 2 + 65)] == ["0:00", "1:01", "2:01:05"]
