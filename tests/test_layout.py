"""Paths and names: what one module writes another finds."""

from __future__ import annotations

from pathlib import Path

from entk_app.layout import RunLayout, analyse_task_name, simulate_task_name, train_task_name


def test_paths_lie_below_the_run_folder():
    layout = RunLayout(Path("run"))
    assert layout.segment(3, 12).trajectory == Path("run/simulations/0003/segment-0012/trajectory.dcd")
    assert layout.segment(3, 12).in_work().trajectory == Path(
        "run/simulations/0003/segment-0012.partial/trajectory.dcd"
    )
    assert layout.segment(3, 12).task == Path("run/simulations/0003/segment-0012.task.json")
    assert layout.model(2, 6).encoder == Path("run/models/iteration-0002/latent-6/encoder.keras")
    assert layout.analysis(7) == Path("run/analysis/iteration-0007.json")


def test_only_radicals_files_and_logs_move_to_a_scratch_folder():
    layout = RunLayout(Path("run"), scratch=Path("elsewhere"))
    assert (layout.radical, layout.logs) == (Path("elsewhere/radical"), Path("elsewhere/logs"))
    assert layout.decisions == Path("run/decisions.jsonl")


def test_entk_takes_the_names():
    for name in (simulate_task_name(1, 2, 3), train_task_name(4, 5), analyse_task_name(6)):
        assert all(letter.isalnum() or letter == "." for letter in name)
