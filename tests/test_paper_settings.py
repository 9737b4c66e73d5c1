"""docs/paper-settings.md: every row of its tables is what the presets of the paper say, and no preset says more."""

from __future__ import annotations

import re

import pytest
import yaml
from conftest import CHECKOUT

from entk_app.settings import build_settings, known_keys, read_preset

DOCUMENT = CHECKOUT / "docs" / "paper-settings.md"
PRESETS = ("fs-peptide", "bba")


def read_rows():
    """Rows of the tables of settings: key -> the two presets' values."""
    rows, in_table = {}, False
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[:3] == ["setting", *(f"`{name}`" for name in PRESETS)]:
            in_table = True
        elif not line.startswith("|"):
            in_table = False
        elif in_table and not set(cells[0]) <= {"-"}:
            key, *values = (re.fullmatch(r"`([^`]+)`", cell).group(1) for cell in cells[:3])
            assert key not in rows, f"{key} is there twice"
            assert len(cells) == 5
            rows[key] = dict(zip(PRESETS, map(yaml.safe_load, values), strict=True))
    return rows


def look_up(values, key):
    for part in key.split("."):
        values = values[part]
    return values


def flatten(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_row_is_what_the_preset_says(preset):
    settings = build_settings(read_preset(preset)[1]).model_dump(mode="json")
    rows = read_rows()
    assert len(rows) > 30
    assert set(rows) <= set(known_keys())
    assert {key: look_up(settings, key) for key in rows} == {key: row[preset] for key, row in rows.items()}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_value_of_a_preset_has_its_row(preset):
    assert set(flatten(read_preset(preset)[1])) <= set(read_rows())


def test_physics_and_learning_are_covered_but_for_what_has_no_part_in_the_papers_campaign():
    groups = ("simulate.", "train.", "analyse.", "steering.", "stop.")
    left_out = {"simulate.segment_ns", "simulate.platform", "stop.budget_gpu_hours"}
    # Of systems in a periodic box, which the paper's are not.
    left_out |= {"simulate.pressure_bar"}
    assert {key for key in known_keys() if key.startswith(groups)} - left_out <= set(read_rows())


def test_the_arithmetic_of_the_campaigns_length():
    # Table 2's ns a minute, table 1's totals: 12 simulations after the 5 µs of 100,000 frames.
    for speed, iterations, total, minutes, short in ((1.25, 90, 54.198, 36, 11.8), (1.20, 100, 18.562, 9.4, 12.2)):
        assert 5.0 + iterations * 12 * 5 * speed * 1e-3 == pytest.approx(short, abs=0.051)
        assert (total - 5.0) * 1e3 / (iterations * 12 * speed) == pytest.approx(minutes, rel=0.02)
