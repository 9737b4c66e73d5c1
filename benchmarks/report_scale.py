"""How long ``entk-app report`` takes on a large campaign, how large its page is and how soon Chromium shows it.

``python benchmarks/report_scale.py FOLDER [--frames N] [--segment-frames N] [--slots N]`` makes FOLDER if it is not
there: the records of ``status_scale.py``, and synthetic frames, latent coordinates, loss curves and trajectories
beside them. Then it times the command, and the page in a headless Chromium where selenium finds one.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from status_scale import make_run

from entk_app import geometry
from entk_app.frames import write_embeddings
from entk_app.integrity import digest_files
from entk_app.layout import RunLayout
from entk_app.records import AnalysisRecord, Decision, SegmentKey, SegmentRecord, read_lines, read_record, write_record
from entk_app.settings import build_settings, read_config
from entk_app.systems import build_system, write_system

#: As the simulate task writes its files, so that they are as large.
CHUNK = 1024


def fill_run(layout: RunLayout) -> None:
    """Frames, trajectories, latent coordinates and loss curves for the records that are there."""
    settings = build_settings(read_config(layout.settings))
    with tempfile.TemporaryDirectory() as cache:
        write_system(build_system(settings, cache=Path(cache)), layout)
    rng = np.random.default_rng(2)
    restarted = {
        action.simulation: action.origin
        for decision in read_lines(Decision, layout.decisions)
        for action in decision.actions
        if action.origin
    }
    native = read_native(layout)
    maps = make_maps(native, settings.simulate.contact_cutoff_angstrom, rng)
    trajectory: Path | None = None
    latent, last_of = {}, {}
    for path in sorted(layout.simulations.glob("*/segment-????/segment.json")):
        record = read_record(SegmentRecord, path)
        paths = layout.segment(record.simulation, record.segment)
        start = last_of.get(record.simulation, 10.0 if record.simulation not in restarted else 6.0)
        rmsd = np.abs(start + np.cumsum(rng.normal(0.0, 0.25, record.n_frames) - 0.02 * (start - 6.0))) + 0.3
        last_of[record.simulation] = float(rmsd[-1])
        write_frames(paths.frames, record, rmsd, maps, rng)
        if trajectory is None:
            trajectory = paths.trajectory
            write_trajectory(layout, trajectory, record.n_frames, rng)
        else:
            os.link(trajectory, paths.trajectory)
        place = int(np.argmin(rmsd))
        files = record.files | digest_files([paths.frames])
        changes = {"files": files, "min_rmsd_angstrom": float(rmsd[place]), "min_rmsd_frame": place}
        write_record(path, record.model_copy(update=changes))
        key = SegmentKey(simulation=record.simulation, segment=record.segment, n_frames=record.n_frames)
        latent[key] = np.column_stack([rmsd / 4.0 - 1.5, *rng.normal(0.0, 1.0, (2, record.n_frames))])
    newest = read_record(AnalysisRecord, max(layout.analyses.glob("iteration-????.json")))
    write_embeddings(layout.model(newest.best_model.iteration, newest.best_model.latent_dim).embeddings, latent)
    epochs = np.arange(1, 101)
    losses = "epoch,train_loss,held_out_loss,held_out_reconstruction\n" + "\n".join(
        f"{n},{40 / n + 11:.4f},{42 / n + 12:.4f},{42 / n + 9:.4f}" for n in epochs
    )
    for model in layout.models.glob("iteration-*/latent-*/model.json"):
        (model.parent / "history.csv").write_text(losses + "\n", encoding="utf-8")


def read_native(layout: RunLayout) -> np.ndarray:
    import MDAnalysis as mda

    return mda.Universe(str(layout.native)).select_atoms("name CA").positions


def make_maps(native: np.ndarray, cutoff: float, rng: np.random.Generator) -> np.ndarray:
    """Packed maps of structures from the native one to one that is far from it."""
    noise = rng.normal(0.0, 1.0, (400, *native.shape)) * np.linspace(0.0, 8.0, 400)[:, None, None]
    return geometry.pack_contacts(geometry.compute_contacts(native + noise, cutoff))


def write_frames(
    path: Path, record: SegmentRecord, rmsd: np.ndarray, maps: np.ndarray, rng: np.random.Generator
) -> None:
    n = record.n_frames
    place = np.clip((rmsd / 12.0 * len(maps)).astype(int), 0, len(maps) - 1)
    columns = {
        "step": record.first_step + np.arange(1, n + 1) * (record.steps // n),
        "time_ps": record.start_time_ps + np.arange(1, n + 1) * (record.time_ps / n),
        "rmsd_angstrom": rmsd,
        "radius_of_gyration_angstrom": 7.0 + 0.4 * rmsd + rng.normal(0.0, 0.2, n),
        "native_contacts": np.clip(1.0 - rmsd / 12.0, 0.0, 1.0),
    }
    with h5py.File(path, "w") as file:
        file.attrs["n_residues"] = 21
        packed = maps[place]
        file.create_dataset("contacts", data=packed, maxshape=(None, packed.shape[1]), chunks=(CHUNK, packed.shape[1]))
        for name, values in columns.items():
            file.create_dataset(name, data=values, maxshape=(None,), chunks=(CHUNK,))


def write_trajectory(layout: RunLayout, path: Path, n_frames: int, rng: np.random.Generator) -> None:
    """One that all segments share: only the structures of a few frames are read."""
    import MDAnalysis as mda

    universe = mda.Universe(str(layout.topology))
    start = universe.atoms.positions.copy()
    with mda.Writer(str(path), universe.atoms.n_atoms) as writer:
        for _ in range(n_frames):
            universe.atoms.positions = start + rng.normal(0.0, 0.5, start.shape)
            writer.write(universe.atoms)


def time_page(page: Path) -> str:
    """Seconds until a headless Chromium has loaded the page and drawn what is seen first, and all of it."""
    from selenium import webdriver

    browser, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver_path is None:
        return "Chromium: not installed (Debian's chromium and chromium-driver), nothing was timed"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
                     "--enable-unsafe-swiftshader", "--window-size=1280,900"):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        driver.set_script_timeout(120)
        began = time.monotonic()
        driver.get(page.as_uri())
        loaded = time.monotonic() - began
        driver.execute_async_script(
            "const done = arguments[0]; window.drawEverything().then(() => requestAnimationFrame(() => done()));"
        )
        drawn = time.monotonic() - began
    finally:
        driver.quit()
    return f"Chromium: opened in {loaded:.1f} s, every figure drawn after {drawn:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--segment-frames", type=int, default=70, help="5 minutes of the paper's Fs-peptide on a GPU")
    parser.add_argument("--slots", type=int, default=16)
    options = parser.parse_args()
    layout = RunLayout(options.folder.absolute())
    if not layout.root.exists():
        make_run(layout.root, options.frames, options.segment_frames, options.slots)
        fill_run(layout)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "entk_app", "report", str(layout.root)], capture_output=True, text=True, check=True
    )
    seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    page = layout.report / "index.html"
    print(done.stdout, end="")
    files = [path.stat().st_size for path in layout.report.rglob("*") if path.is_file()]
    size, memory = sum(files) / 1e6, used.ru_maxrss / 1e6
    print(
        f"entk-app report: {seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of CPU, {memory:.2f} GB); "
        f"page {page.stat().st_size / 1e6:.1f} MB, all {size:.1f} MB"
    )
    try:
        print(time_page(page))
    except ImportError:
        print("selenium is not installed: no browser was timed")


if __name__ == "__main__":
    main()
