"""The latent space in three dimensions (the paper's figures 2C, 2D, 2E, 3C)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entk_app.report import style
from entk_app.report.data import LatentSpace, ReportData
from entk_app.report.figure import Figure, Missing, Table
from entk_app.report.figures.common import FRAME_HOVER, NO_FRAMES, count_parts, identify
from entk_app.report.sample import sample_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

#: So many points turn smoothly in a browser without a graphics card, too.
MAX_POINTS = 16_000
#: Share of the frames that are new: the paper's last 10 %.
NEWEST = 0.1

#: Of the older frames: dots on paper are smaller than on a screen.
_PRINT_OPACITY = 0.35

#: A few frames, such as the extended start, would take most of the colours.
_COLOURED_PERCENT = 98.0

#: Latent dimensions that the page lets choose from, the first: of large models all would make it slow to open.
_MAX_DIMENSIONS = 12

_TITLES = {
    "latent": "Latent space",
    "latent-newest-over-older": "Newest tenth of the data over the older",
    "latent-newest": "Newest tenth of the data",
}
#: Label, places among what is encoded, marker; one without a colour is coloured by its RMSD.
_Group = tuple[str, NDArray[np.intp], dict[str, Any]]

_HOW = (
    "all outliers of the last analysis, the lowest RMSD and the extremes of every dimension; of the rest a random, "
    "seeded choice that thins dense regions (the root of their density)"
)


def build_latent(data: ReportData) -> Iterator[Figure | Missing]:
    """All frames by RMSD with the outliers; the newest over the older ones; the newest alone."""
    space = data.latent
    if space is None:
        reason = NO_FRAMES if not len(data.frames) else "No analysis has been published yet."
        if data.analyses:
            reason = "The latent coordinates of the last analysis cannot be read."
        yield from (Missing(name, title, reason) for name, title in _TITLES.items())
        return
    drawn = _Drawn(data, space)
    yield drawn.build_all()
    yield drawn.build_newest(over_older=True)
    yield drawn.build_newest(over_older=False)


class _Drawn:
    """The points that the three figures share: they are chosen once."""

    def __init__(self, data: ReportData, space: LatentSpace) -> None:
        frames = data.frames
        self.data, self.space = data, space
        self.values = data.rmsd if data.rmsd is not None else frames.radius_of_gyration_angstrom
        self.what = "RMSD to native (Å)" if data.rmsd is not None else "radius of gyration (Å)"
        lowest = int(np.argmin(self.values[space.rows]))
        keep = np.append(np.flatnonzero(space.is_outlier), lowest)
        self.shown = sample_points(space.coordinates, MAX_POINTS, keep)
        self.lowest = np.array([lowest])
        self.outliers = np.flatnonzero(space.is_outlier)
        # The newest by the clock; as many as make up the share, those of the same moment included.
        when = frames.unix[space.rows]
        n_newest = max(1, round(NEWEST * len(when)))
        self.is_newest = when >= np.partition(when, len(when) - n_newest)[len(when) - n_newest]
        newest = np.flatnonzero(self.is_newest)
        inside = np.flatnonzero(space.is_outlier[newest])
        self.newest = newest[sample_points(space.coordinates[newest], MAX_POINTS, inside)]

    def build_all(self) -> Figure:
        lowest = "lowest RMSD" if self.data.rmsd is not None else "smallest radius of gyration"
        edge = {"width": 2, "color": style.VERMILLION}
        groups: list[_Group] = [
            ("frames", self.shown, {"size": 2.6, "opacity": 0.85}),
            (
                f"outliers: {len(self.outliers):,}",
                self.outliers,
                {"size": 6, "symbol": "circle-open", "color": style.VERMILLION, "line": edge},
            ),
            (lowest, self.lowest, {"size": 8, "symbol": "diamond", "color": style.VERMILLION}),
        ]
        return self._build(
            "latent",
            [group for group in groups if len(group[1])],
            f"Outliers of the analysis of iteration {self.space.iteration}, by whichever model, are ringed. "
            + count_parts(len(self.shown), len(self.space.rows), "encoded frames", _HOW),
        )

    def build_newest(self, over_older: bool) -> Figure:
        older = self.shown[~self.is_newest[self.shown]]
        pale = {"size": 2, "color": style.GREY, "opacity": 0.18}
        groups: list[_Group] = [("older", older, pale)] if over_older else []
        groups.append(("newest", self.newest, {"size": 3, "opacity": 0.95}))
        n_newest = int(self.is_newest.sum())
        said = count_parts(len(self.newest), n_newest, "newest frames", _HOW)
        if over_older:
            n_older = len(self.space.rows) - n_newest
            said += " In pale grey: " + count_parts(len(older), n_older, "older frames", "thinned likewise").lower()
        return self._build(
            "latent-newest-over-older" if over_older else "latent-newest",
            groups,
            f"The newest {100 * n_newest / len(self.space.rows):.0f} % of the frames by the clock. {said}",
        )

    def _build(self, name: str, groups: list[_Group], said: str) -> Figure:
        space, frames = self.space, self.data.frames
        n_dimensions = space.coordinates.shape[1]
        shown_axes = list(range(min(3, n_dimensions)))
        colour_of = self.values[space.rows]
        low, high = float(colour_of.min()), float(np.percentile(colour_of, _COLOURED_PERCENT))

        def draw() -> Drawing:
            figure = style.new_figure(style.SINGLE_MM, 75)
            ax: Any = figure.add_subplot(projection="3d" if len(shown_axes) == 3 else None)
            drawn = None
            # Paler with distance, points would be of other colours than their scale's.
            shade = {"depthshade": False} if len(shown_axes) == 3 else {}
            for label, places, marker in groups:
                points = space.coordinates[places][:, shown_axes].T
                if len(shown_axes) == 1:
                    points = np.stack([points[0], colour_of[places]])
                if "color" in marker:
                    symbol, colour = marker.get("symbol", "circle"), marker["color"]
                    size, shape = {"circle-open": (9.0, "o"), "diamond": (16.0, "D")}.get(symbol, (1.5, "o"))
                    ax.scatter(
                        *points, s=size, marker=shape, label=label, rasterized=True, linewidths=0.5,
                        facecolors="none" if symbol == "circle-open" else colour,
                        edgecolors=colour if symbol == "circle-open" else "none",
                        alpha=_PRINT_OPACITY if "opacity" in marker else 1.0, **shade,
                    )  # fmt: skip
                else:
                    drawn = ax.scatter(
                        *points, c=colour_of[places], s=2.5, cmap=style.rmsd_map(), vmin=low, vmax=high, linewidths=0.0,
                        rasterized=True, **shade,
                    )  # fmt: skip
            names = [f"z{axis + 1}" for axis in shown_axes] + ([self.what] if len(shown_axes) == 1 else [])
            for axis, text in zip("xyz", names, strict=False):
                getattr(ax, f"set_{axis}label")(text, labelpad=-8 if len(shown_axes) == 3 else None)
                ax.tick_params(axis=axis, pad=-3 if len(shown_axes) == 3 else 2, labelsize=5.5)
            if drawn is not None:
                figure.colorbar(drawn, ax=ax, label=self.what, shrink=0.7, pad=0.12)
            if ax.get_legend_handles_labels()[0]:
                figure.legend(loc="outside upper left", ncols=2, markerscale=2.0)
            return figure

        traces, dimensions = [], []
        for label, places, marker in groups:
            axes = [space.coordinates[places, axis] for axis in range(min(n_dimensions, _MAX_DIMENSIONS))]
            # What is missing to a space is flat.
            axes += [np.zeros(len(places), dtype="f4")] * (3 - n_dimensions)
            coloured = {} if "color" in marker else {"color": colour_of[places].astype("f4"), "coloraxis": "coloraxis"}
            traces.append({
                "type": "scatter3d", "mode": "markers", "name": label, "marker": marker | coloured,
                "customdata": np.column_stack([identify(frames, space.rows[places]), colour_of[places]]).astype("f4"),
                "hovertemplate": f"{FRAME_HOVER}<br>{self.what}: %{{customdata[3]:.2f}}<extra></extra>",
                "showlegend": "color" in marker,
            })  # fmt: skip
            dimensions.append(axes)
        places = np.concatenate([group[1] for group in groups])
        rows = space.rows[places]
        columns: dict[str, Any] = {
            "group": np.repeat([label.split(":")[0] for label, *_ in groups], [len(p) for _, p, _ in groups]),
            "simulation": frames.simulation[rows], "segment": frames.segment[rows], "frame": frames.frame[rows],
            **({"rmsd_angstrom": self.data.rmsd[rows]} if self.data.rmsd is not None else {}),
            "radius_of_gyration_angstrom": frames.radius_of_gyration_angstrom[rows],
            "outlier": space.is_outlier[places].astype(int),
            **{f"z{axis + 1}": space.coordinates[places, axis] for axis in range(n_dimensions)},
        }  # fmt: skip
        n_left = len(frames) - len(space.rows)
        return Figure(
            name=name,
            title=_TITLES[name],
            caption=f"Model of iteration {space.model.iteration}, latent size {space.model.latent_dim}; colour: "
            f"{self.what}, up to the value that {_COLOURED_PERCENT:g} % of the frames are below. {said}"
            + (f" The first {_MAX_DIMENSIONS} dimensions can be chosen." if n_dimensions > _MAX_DIMENSIONS else "")
            + (f" {n_left:,} newer frames are not encoded by it yet and are left out." if n_left else ""),
            table=Table(columns),
            draw=draw,
            traces=traces,
            layout={
                "scene": {"aspectmode": "cube", "camera": {"eye": {"x": 1.55, "y": 1.55, "z": 0.95}}},
                "coloraxis": {
                    "cmin": low, "cmax": high, "colorbar": {"title": {"text": self.what, "side": "right"}, "len": 0.8}
                },
                "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemsizing": "constant"},
                "margin": {"l": 0, "r": 0, "t": 30, "b": 0},
            },
            height=520 if name == "latent" else 420,
            dimensions=dimensions,
            place="wide" if name == "latent" else "newest",
        )  # fmt: skip
