"""The numbers of Ma et al. 2019 (arXiv:1908.00496), tables 1 and 2 and section 2.2, as they are printed there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One system of the paper.

    Attributes
    ----------
    n_simulations, total_time_us, shortest_us, longest_us, n_iterations, min_rmsd_angstrom
        Table 1; the shortest is of the simulations past the initial threshold.
    train_minutes, epochs, seconds_per_epoch, inference_ms_per_frame, md_ns_per_minute
        Table 2.
    productive_angstrom : float or None
        Figure 2A: simulations that came as near as this are in colour.
    unfolded_angstrom : float or None
        Section 3: beyond this only the unfolded state is sampled.
    """

    system: str
    title: str
    n_simulations: int
    total_time_us: float
    shortest_us: float
    longest_us: float
    n_iterations: int
    min_rmsd_angstrom: float
    train_minutes: float
    seconds_per_epoch: float
    inference_ms_per_frame: float
    md_ns_per_minute: float
    epochs: int = 100
    productive_angstrom: float | None = None
    unfolded_angstrom: float | None = None


#: Section 2.
PLATFORM = "DGX-2, 16 V100: 12 simulate, 4 train; OpenMM 7.3, all-atom"
FRICTION_PER_PS = 91.0

ROWS = (
    PaperRow(
        system="fs-peptide", title="Fs-peptide", n_simulations=31, total_time_us=54.198, shortest_us=1.01,
        longest_us=3.4, n_iterations=90, min_rmsd_angstrom=1.6, train_minutes=7.0, seconds_per_epoch=5.0,
        inference_ms_per_frame=5.13, md_ns_per_minute=1.25, productive_angstrom=4.5, unfolded_angstrom=8.3,
    ),
    PaperRow(
        system="bba", title="BBA (FSD-EY)", n_simulations=45, total_time_us=18.562, shortest_us=0.517,
        longest_us=0.873, n_iterations=100, min_rmsd_angstrom=4.44, train_minutes=11.0, seconds_per_epoch=7.0,
        inference_ms_per_frame=1.27, md_ns_per_minute=1.20,
    ),
)  # fmt: skip
