"""The figure: every task on the devices that it had, and readable when there are many."""

from __future__ import annotations

import time

import pytest
from test_accounting import HOUR, make_pilot, make_task, make_usage

from entk_app.accounting import Usage
from entk_app.gantt import (
    _stack_pilots,
    assign_lanes,
    choose_unit,
    divide_lanes,
    draw_figure,
    lane_device,
    list_utilisation,
    write_figure,
)


def test_lanes_are_the_devices_that_tasks_had():
    tasks = [
        make_task(1, 1, 9, 9, uid="a", gpu_ids=(1,), gpus=1, node="n1"),
        make_task(1, 1, 9, 9, uid="b", gpu_ids=(0,), gpus=1, node="n2"),
        make_task(uid="waits", gpu_ids=(0,), gpus=1),
    ]
    assert assign_lanes(make_pilot(nodes=2, gpus=4), tasks, "gpus") == {"a": (1,), "b": (2,)}


def test_tasks_whose_devices_are_unknown_take_the_first_that_are_free():
    tasks = [
        make_task(1, 1, 9, 9, uid="known", core_ids=(1,)),
        make_task(2, 2, 9, 9, uid="wide", cores=2),
        make_task(3, 3, 9, 9, uid="next"),
        make_task(9, 9, 12, 12, uid="later"),
    ]
    lanes = assign_lanes(make_pilot(), tasks, "cores")
    assert lanes == {"known": (1,), "wide": (0, 2), "next": (3,), "later": (0,)}


def test_tasks_that_share_a_device_share_its_lane():
    tasks = [
        make_task(1, 1, 9, 9, uid="a", gpu_ids=(1,), gpus=0.5),
        make_task(2, 2, 12, 12, uid="b", gpu_ids=(1,), gpus=0.5),
        make_task(9, 9, 14, 14, uid="after a", gpu_ids=(1,), gpus=0.5),
        make_task(1, 1, 9, 9, uid="alone", gpu_ids=(2,), gpus=1),
    ]
    pilot = make_pilot(gpus=4)
    lanes = assign_lanes(pilot, tasks, "gpus")
    assert lanes == {"a": (1,), "b": (1,), "after a": (1,), "alone": (2,)}
    assert divide_lanes(pilot, tasks, lanes, "gpus") == {"a": (0, 2), "b": (1, 2), "after a": (0, 2)}


def test_pilots_share_lanes_unless_they_live_at_one_time():
    first = make_pilot()
    after = make_pilot(number=2, start=200 * HOUR, end=300 * HOUR)
    beside = make_pilot(number=3, start=250 * HOUR, end=300 * HOUR)
    assert _stack_pilots((first, after, beside), "cores") == ({1: 0, 2: 0, 3: 4}, 8)


def test_utilisation_is_of_the_pilots_that_live_at_the_time():
    first = make_pilot(gpus=0, end=30 * HOUR, shutdown=None)
    beside = make_pilot(number=2, gpus=0, start=20 * HOUR, end=40 * HOUR, shutdown=None)
    tasks = (make_task(12, 13, 30, 30, cores=3), make_task(20, 20, 35, 35, pilot=2, cores=1, kind="train"))
    got = [(unix / HOUR, {k: v for k, v in shares.items() if v}) for unix, shares in
           list_utilisation(Usage((first, beside), tasks), "cores")]  # fmt: skip
    assert got == [
        (0, {}), (10, {}), (12, {"held": 75}), (13, {"simulate": 75}), (20, {"simulate": 37.5, "train": 12.5}),
        (30, {"train": 25}), (35, {}), (40, {}),
    ]  # fmt: skip


def test_lanes_are_gpus_where_there_are_any():
    assert lane_device(make_usage()) == "gpus"
    assert lane_device(Usage((make_pilot(gpus=0),), ())) == "cores"


@pytest.mark.parametrize(("seconds", "unit"), [(0, "s"), (200, "s"), (7000, "min"), (1e5, "h"), (1e6, "days")])
def test_time_is_shown_in_a_readable_unit(seconds, unit):
    assert choose_unit(seconds)[0] == unit


def test_axes_have_labels_with_units_and_legends_lie_beside_the_data():
    figure = draw_figure(make_usage(), "title")
    upper, lower = figure.axes
    assert upper.get_ylabel() == "GPU"
    assert lower.get_xlabel() == "time since the first pilot's start (days)"
    assert lower.get_ylabel() == "GPUs in use (%)"
    assert upper.get_legend() is None and lower.get_legend() is None
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y1 <= lower.get_tightbbox().y0
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["simulate", "train"]


def test_bars_lie_where_and_when_their_tasks_ran():
    usage = Usage((make_pilot(gpus=0),), (make_task(20, 21, 30, 31, core_ids=(2, 3), cores=2, state="purged"),))
    upper = draw_figure(usage, "title").axes[0]
    (bars,) = upper.collections
    corners = bars.get_paths()[0].get_extents()
    assert (corners.x0 * 24, corners.x1 * 24) == (pytest.approx(21), pytest.approx(30))  # in days
    assert (round(corners.y0), round(corners.y1)) == (2, 3)
    assert bars.get_hatch()


@pytest.mark.parametrize(
    "usage",
    [Usage((make_pilot(start=0.0, end=0.0, state="never started"),), ()), Usage((make_pilot(cores=0, gpus=0),), ())],
)
def test_pilots_with_nothing_to_show_are_drawn_all_the_same(usage, tmp_path):
    write_figure(usage, "title", [tmp_path / "x.svg"])
    assert (tmp_path / "x.svg").stat().st_size > 0


def test_sixty_four_lanes_and_a_thousand_tasks_take_seconds(tmp_path):
    tasks = tuple(
        make_task(b, b + 0.1, b + 5.5, b + 5.8, uid=f"task.{i}", gpu_ids=(i % 64,), gpus=1, cores=1)
        for i in range(1000)
        for b in [10 + 6 * (i // 64)]
    )
    usage = Usage((make_pilot(cores=64, gpus=64, end=120 * HOUR, shutdown=None),), tasks)
    began = time.monotonic()
    write_figure(usage, "title", [tmp_path / "x.svg", tmp_path / "x.png"])
    assert time.monotonic() - began < 60
    assert (tmp_path / "x.svg").stat().st_size < 5e6
    assert not list(tmp_path.glob(".*"))


def test_thousands_of_failed_tasks_are_not_hatched():
    for n, is_hatched in ((10, True), (3001, False)):
        tasks = tuple(make_task(20, 21, 30, 31, uid=f"task.{i}", core_ids=(0,), state="failed") for i in range(n))
        (bars,) = draw_figure(Usage((make_pilot(gpus=0),), tasks), "title").axes[0].collections
        assert bool(bars.get_hatch()) is is_hatched
