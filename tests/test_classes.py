"""Folded, partially folded, unfolded: the paper's limits, or those of the campaign's target."""

from __future__ import annotations

import pytest
from conftest import tiny_settings

from entk_app.classes import FOLD_CLASSES, ClassLimits, find_class_limits


@pytest.mark.parametrize(
    ("assignments", "preset", "folded", "partial", "source"),
    [
        ((), "fs-peptide", 3.1, 4.6, "Ma et al. 2019"),
        (("stop.target_rmsd_angstrom=1.8",), "villin-quick", 1.8, 2.7, "stop.target_rmsd_angstrom"),
        (("stop.target_rmsd_angstrom=null",), "villin-quick", 2.0, 3.0, "by default"),
    ],
)
def test_limits_of_a_system(assignments, preset, folded, partial, source):
    limits = find_class_limits(tiny_settings("stop.target_rmsd_angstrom=1.5", *assignments, preset=preset))
    assert (limits.folded, limits.partial, limits.source) == (folded, pytest.approx(partial), source)


def test_the_classes_cover_every_rmsd_once():
    limits = ClassLimits(3.1, 4.6, "Ma et al. 2019")
    ranges = [limits.find_range(name) for name in FOLD_CLASSES]
    assert ranges == [(None, 3.1), (3.1, 4.6), (4.6, None)]
