"""Folded, partially folded, unfolded: by RMSD to the native structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from entk_app.settings import Settings

FoldClass = Literal["folded", "partial", "unfolded"]
FOLD_CLASSES: tuple[FoldClass, ...] = get_args(FoldClass)

#: Ma et al. 2019, section 3 and figure 2B: 3.1 Å or less is folded, followed by 4.6 Å for partially folded.
_OF_THE_PAPER = {"fs-peptide": (3.1, 4.6)}
_DEFAULT_FOLDED = 2.0
#: Of a system that the paper gives no limits for: as far apart as those of Fs-peptide.
_PARTIAL_OVER_FOLDED = 1.5


@dataclass(frozen=True)
class ClassLimits:
    """Frames at up to ``folded`` Å are folded, then partially folded at up to ``partial`` Å, unfolded beyond."""

    folded: float
    partial: float
    source: str

    def find_range(self, fold_class: FoldClass) -> tuple[float | None, float | None]:
        """RMSD in ångström: more than the first, at most the second; None: without a limit."""
        ranges: dict[FoldClass, tuple[float | None, float | None]] = {
            "folded": (None, self.folded),
            "partial": (self.folded, self.partial),
            "unfolded": (self.partial, None),
        }
        return ranges[fold_class]


def find_class_limits(settings: Settings) -> ClassLimits:
    """The paper's limits where it has some, else the campaign's target (2 Å without one) and half as much again."""
    known = _OF_THE_PAPER.get(settings.system.name)
    if known is not None:
        return ClassLimits(*known, source="Ma et al. 2019")
    target = settings.stop.target_rmsd_angstrom
    folded = _DEFAULT_FOLDED if target is None else target
    source = "by default" if target is None else "stop.target_rmsd_angstrom"
    return ClassLimits(folded, _PARTIAL_OVER_FOLDED * folded, source)
