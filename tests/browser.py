"""A headless Chromium that opens reports, with WebGL in software and without a network."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--proxy-server=127.0.0.1:9",
)  # fmt: skip

#: What a drawn figure has, by the identity of its card; run in the page.
_LOOK = """
return [...document.querySelectorAll('figure.card')].map((card) => {
  const plot = card.querySelector('.plot'), picture = card.querySelector('img');
  if (!plot) return { name: card.id, points: picture && picture.naturalWidth > 0 ? 1 : 0, is3d: false, still: true };
  const count = (trace) => Math.max(0, ...['x', 'y', 'z'].map((key) => (trace[key] || []).length));
  const box = (node) => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const texts = (selector) => [...plot.querySelectorAll(selector)].map((node) => node.textContent.trim());
  const legend = plot.querySelector('.legend');
  const areas = [...plot.querySelectorAll('.draglayer .nsewdrag')].map(box);
  return {
    name: card.id, is3d: Boolean(plot._fullLayout && plot._fullLayout.scene), still: false,
    points: plot._fullData ? plot._fullData.reduce((sum, trace) => sum + count(trace), 0) : 0,
    empty: (plot._fullData || []).filter((trace) => trace.visible === true && count(trace) === 0).length,
    canvases: plot.querySelectorAll('.gl-container canvas').length,
    xtitles: texts('.xtitle'), ytitles: texts('[class*="ytitle"]'),
    legend: legend ? box(legend) : null, areas: areas, plot: box(plot),
  };
});
"""


def skip_without_chromium() -> None:
    """Where it is meant to be there, as in .ci/run, its absence must not pass for success."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing and not os.environ.get("ENTK_APP_REQUIRE_CHROMIUM"):
        pytest.skip(f"no {' and no '.join(missing)} (Debian's chromium and chromium-driver)")


@contextmanager
def open_chromium(profile: Path) -> Iterator[Any]:
    """A browser with a profile of its own; ends with the block."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*_ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The paths are given: selenium looks for nothing on a network.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(120)
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, page: Path, width: int, scheme: str) -> None:
    """Open a page in a window of this width, light or dark, and draw all of it."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page.as_uri())
    failed = driver.execute_async_script(
        "const done = arguments[0];"
        "window.drawEverything().then(() => requestAnimationFrame(() => requestAnimationFrame(() => done(null))))"
        ".catch((error) => done(String(error)));"
    )
    assert failed is None, failed


def check_figures(driver: Any, expected: set[str]) -> None:
    """Every figure is there with data, its axes say what they show, its legend is beside its data."""
    found = {figure["name"]: figure for figure in driver.execute_script(_LOOK)}
    assert set(found) == expected
    for name, figure in found.items():
        assert figure["points"] > 0, f"{name} shows nothing"
        if figure["still"]:
            continue
        assert not figure["empty"], f"{name}: {figure['empty']} of its traces hold nothing"
        if figure["is3d"]:
            assert figure["canvases"], f"{name} has no canvas"
            continue
        # The shares of hours are named on their bars.
        assert all(figure["xtitles"]) and figure["xtitles"], f"{name}: an x axis without a title"
        assert name == "hours" or (all(figure["ytitles"]) and figure["ytitles"]), f"{name}: a y axis without a title"
        if figure["legend"]:
            assert not any(_overlap(figure["legend"], area) for area in figure["areas"]), f"{name}: legend over data"
            assert _lies_in(figure["legend"], figure["plot"]), f"{name}: legend beyond the figure"


def check_three_dimensions(driver: Any) -> int:
    """Every view in three dimensions shows more than its background: how many there are."""
    n_checked = 0
    for plot in driver.find_elements("css selector", ".plot"):
        if not plot.find_elements("css selector", ".gl-container canvas"):
            continue
        driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
        # Software draws when it comes to it.
        deadline = time.monotonic() + 30
        while (n_coloured := _count_coloured(plot.screenshot_as_png)) < 60:
            assert time.monotonic() < deadline, f"{plot.get_attribute('data-figure')} is empty: {n_coloured} pixels"
            time.sleep(0.2)
        n_checked += 1
    return n_checked


def _count_coloured(png: bytes) -> int:
    """Pixels that are not grey, where there is no legend, scale or button."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    high, wide = pixels.shape[:2]
    middle = pixels[high // 6 : -high // 5, wide // 20 : -wide // 4]
    return int((middle.max(axis=-1) - middle.min(axis=-1) > 40).sum())


def find_errors(driver: Any) -> list[str]:
    """What the console holds that is worse than a warning."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def _overlap(a: list[float], b: list[float]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 2 and min(a[3], b[3]) - max(a[1], b[1]) > 2


def _lies_in(inner: list[float], outer: list[float]) -> bool:
    return inner[0] >= outer[0] - 2 and inner[1] >= outer[1] - 2 and inner[2] <= outer[2] + 2
