"""The in-process runner walks the same chain of stages as EnTK does."""

from __future__ import annotations

import pytest
from conftest import prepare, tiny_settings

from entk_app import inprocess


@pytest.mark.staged("it is the order of the one chain")
def test_stages_run_in_their_order_and_each_task_once(tmp_path, monkeypatch):
    ran = []
    real = inprocess.run_task

    def run(kind, root, order):
        ran.append((kind, order.name))
        real(kind, root, order)

    monkeypatch.setattr(inprocess, "run_task", run)
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=1"))
    assert inprocess.run_campaign(campaign).stop_reason == "max_iterations"
    assert [kind for kind, _ in ran] == ["simulate", "simulate", "train", "train", "analyse"]
    assert len({(kind, name) for kind, name in ran if kind != "simulate"}) == 3
    assert campaign.stage is None
    assert campaign.advance() is None


def test_a_task_that_raises_is_a_failed_task(tmp_path, monkeypatch, caplog):
    def fail(kind, root, order):
        raise ValueError("made to fail")

    monkeypatch.setattr(inprocess, "run_task", fail)
    summary = inprocess.run_campaign(prepare(tmp_path / "run", tiny_settings()))
    assert (summary.stop_reason, summary.n_failed_tasks, summary.n_frames) == ("failed", 4, 0)
    assert "made to fail" in caplog.text
