"""How the models learned, which was chosen when, and what the outlier search found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from entk_app.report import style
from entk_app.report.data import ReportData, Training
from entk_app.report.figure import Figure, Missing, Table
from entk_app.report.figures.common import LEGEND_ABOVE

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

#: Loss curves of so many iterations at most are drawn, the newest; all are in the CSV file.
_MAX_CURVES = 40

_NO_MODEL = "No model has been published yet."


def build_losses(data: ReportData) -> Iterator[Figure | Missing]:
    """Loss curves by latent size: the newest iteration's, older ones pale."""
    title = "Loss curves by latent size"
    drawn = [t for t in data.trainings if "held_out_loss" in t.history and "train_loss" in t.history]
    if not drawn:
        yield Missing("losses", title, _NO_MODEL if not data.trainings else "No loss curve can be read.")
        return
    newest = max(t.record.iteration for t in drawn)
    colour_of = _colour_sizes(data)
    older = [t for t in drawn if t.record.iteration < newest]
    kept = sorted({t.record.iteration for t in older})[-_MAX_CURVES:]
    older = [t for t in older if t.record.iteration in kept]
    present = [t for t in drawn if t.record.iteration == newest]
    chosen = _find_chosen(data).get(newest)

    def draw() -> Drawing:
        from matplotlib.ticker import LogFormatter, ScalarFormatter

        figure = style.new_figure(style.SINGLE_MM, 65)
        ax = figure.subplots()
        for t in older:
            colour = colour_of[t.record.latent_dim]
            ax.plot(_epochs(t), t.history["held_out_loss"], color=colour, alpha=0.25, linewidth=0.5)
        for t in present:
            colour, dim = colour_of[t.record.latent_dim], t.record.latent_dim
            ax.plot(_epochs(t), t.history["train_loss"], color=colour, linestyle=(0, (3, 1.5)), linewidth=0.6)
            ax.plot(_epochs(t), t.history["held_out_loss"], color=colour, linewidth=1.6 if dim == chosen else 0.9,
                    label=f"{dim}{' (chosen)' if dim == chosen else ''}")  # fmt: skip
        ax.set(xlabel="epoch", ylabel="loss a frame", yscale="log")
        ax.yaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        figure.legend(loc="outside upper left", ncols=4, title="latent size")
        return figure

    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "x": _epochs(t), "y": t.history["held_out_loss"], "showlegend": False,
            "line": {"color": colour_of[t.record.latent_dim], "width": 1}, "opacity": 0.25,
            "hovertemplate": f"iteration {t.record.iteration}, latent size {t.record.latent_dim}: "
            "%{y:.5g}<extra></extra>",
        }
        for t in older
    ]  # fmt: skip
    for t in present:
        dim = t.record.latent_dim
        for column, dash in (("train_loss", "dash"), ("held_out_loss", "solid")):
            width, said = 3.0 if dim == chosen and dash == "solid" else 1.6, column.replace("_", " ")
            traces.append({
                "type": "scatter", "mode": "lines", "x": _epochs(t), "y": t.history[column], "legendgroup": str(dim),
                "name": f"{dim}{' (chosen)' if dim == chosen else ''}", "showlegend": dash == "solid",
                "line": {"color": colour_of[dim], "dash": dash, "width": width},
                "hovertemplate": f"latent size {dim}, {said}, epoch %{{x}}: %{{y:.5g}}<extra></extra>",
            })  # fmt: skip
    columns: dict[str, list[Any]] = {name: [] for name in (
        "iteration", "latent_dim", "epoch", "train_loss", "held_out_loss", "held_out_reconstruction"
    )}  # fmt: skip
    for t in drawn:
        n = len(_epochs(t))
        columns["iteration"] += [t.record.iteration] * n
        columns["latent_dim"] += [t.record.latent_dim] * n
        columns["epoch"] += _epochs(t).astype(int).tolist()
        for name in ("train_loss", "held_out_loss", "held_out_reconstruction"):
            columns[name] += list(t.history.get(name, np.full(n, np.nan)))
    yield Figure(
        name="losses",
        title=title,
        caption=f"Iteration {newest}: solid on held-out frames, dashed on those trained on; thick: chosen. Pale: "
        f"held-out curves of earlier iterations{f' (the last {_MAX_CURVES})' if len(kept) == _MAX_CURVES else ''}. "
        "Binary cross-entropy summed over the pixels of a map plus the KL divergence.",
        table=Table(columns),
        draw=draw,
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "epoch"}},
            "yaxis": {"title": {"text": "loss a frame"}, "type": "log", **_log_ticks(traces)},
            "legend": LEGEND_ABOVE | {"title": {"text": "latent size "}},
        },
        height=380,
        place="learning",
    )  # fmt: skip


def build_choice(data: ReportData) -> Iterator[Figure | Missing]:
    """The held-out reconstruction of every model by iteration, and which was chosen."""
    title = "Which model was chosen when"
    if not data.trainings:
        yield Missing("model-choice", title, _NO_MODEL)
        return
    colour_of, chosen = _colour_sizes(data), _find_chosen(data)
    lines = {}
    for dim in colour_of:
        records = [t.record for t in data.trainings if t.record.latent_dim == dim]
        lines[dim] = (
            np.array([r.iteration for r in records]), np.array([r.held_out_reconstruction for r in records])
        )  # fmt: skip
    of = {(t.record.iteration, t.record.latent_dim): t.record.held_out_reconstruction for t in data.trainings}
    # A best model of an earlier iteration serves on where a training failed.
    models = {a.iteration: (a.best_model.iteration, a.best_model.latent_dim) for a in data.analyses if a.best_model}
    rings = [(iteration, of[model]) for iteration, model in models.items() if model in of]

    def draw() -> Drawing:
        from matplotlib.ticker import MaxNLocator

        figure = style.new_figure(style.SINGLE_MM, 65)
        ax = figure.subplots()
        for dim, (x, y) in lines.items():
            ax.plot(x, y, "o-", color=colour_of[dim], markersize=2.5, label=str(dim))
        if rings:
            ax.plot(*zip(*rings, strict=True), "o", markersize=6, markerfacecolor="none", color="#222222",
                    markeredgewidth=0.8, label="chosen")  # fmt: skip
        ax.set(xlabel="iteration", ylabel="held-out reconstruction loss")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=5, title="latent size")
        return figure

    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "name": str(dim),
            "line": {"color": colour_of[dim], "width": 1.6}, "marker": {"size": 6},
            "hovertemplate": f"latent size {dim}, iteration %{{x}}: %{{y:.5g}}<extra></extra>",
        }
        for dim, (x, y) in lines.items()
    ]  # fmt: skip
    if rings:
        traces.append({
            "type": "scatter", "mode": "markers", "x": [x for x, _ in rings], "y": [y for _, y in rings],
            "marker": {"symbol": "circle-open", "size": 14, "line": {"width": 2}, "color": style.GREY},
            "name": "chosen", "hoverinfo": "skip",
        })  # fmt: skip
    records = [t.record for t in data.trainings]
    yield Figure(
        name="model-choice",
        title=title,
        caption="Reconstruction loss on held-out frames, by which the best model is chosen: ringed where the "
        "analysis of that iteration took it for the best.",
        table=Table({
            "iteration": [r.iteration for r in records], "latent_dim": [r.latent_dim for r in records],
            "held_out_reconstruction": [r.held_out_reconstruction for r in records],
            "held_out_loss": [r.held_out_loss for r in records], "epochs": [r.epochs for r in records],
            "seconds_train": [r.seconds_train for r in records],
            "chosen": [int(chosen.get(r.iteration) == r.latent_dim) for r in records],
        }),
        draw=draw,
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "iteration"}, "tickformat": "d", **_whole_ticks(r.iteration for r in records)},
            "yaxis": {"title": {"text": "held-out reconstruction loss"}},
            "legend": LEGEND_ABOVE | {"title": {"text": "latent size "}},
        },
        height=380,
        place="learning",
    )  # fmt: skip


def build_outliers(data: ReportData) -> Iterator[Figure | Missing]:
    """Outliers, eps and the noise fraction of every analysis."""
    title = "Outliers, eps and noise by iteration"
    if not data.analyses:
        yield Missing("outliers", title, "No analysis has been published yet.")
        return
    colour_of = _colour_sizes(data)
    rows = [
        (a.iteration, m.model.latent_dim, m.n_outliers, m.eps,
         None if m.eps is None else 100.0 * m.n_outliers / m.n_frames, m.n_frames)
        for a in data.analyses
        for m in a.models
    ]  # fmt: skip
    union = [(a.iteration, len(a.outliers)) for a in data.analyses]
    union_of = dict(union)
    n_without = sum(eps is None for _, _, _, eps, *_ in rows)
    panels = (("outliers", 2), ("eps", 3), ("noise (%)", 4))

    def draw() -> Drawing:
        from matplotlib.ticker import MaxNLocator

        figure = style.new_figure(style.DOUBLE_MM, 60)
        axes = figure.subplots(1, 3)
        for ax, (label, place) in zip(axes, panels, strict=True):
            for dim, colour in colour_of.items():
                own = [(row[0], row[place]) for row in rows if row[1] == dim and row[place] is not None]
                if own:
                    ax.plot(*zip(*own, strict=True), "o-", color=colour, markersize=2.2,
                            label=str(dim) if place == 2 else None)  # fmt: skip
            if place == 2:
                ax.plot(*zip(*union, strict=True), "s--", color="#444444", markersize=2.2, label="all models")
            ax.set(xlabel="iteration", ylabel=label, ylim=(0, None))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=6, title="latent size")
        return figure

    traces: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines+markers", "name": "all models", "x": [x for x, _ in union],
        "y": [y for _, y in union], "line": {"color": style.GREY, "dash": "dot"},
        "marker": {"symbol": "square", "size": 6},
        "hovertemplate": "all models, iteration %{x}: %{y} outliers<extra></extra>",
    }]  # fmt: skip
    for number, (label, place) in enumerate(panels, 1):
        for dim, colour in colour_of.items():
            own = [(row[0], row[place]) for row in rows if row[1] == dim and row[place] is not None]
            traces.append({
                "type": "scatter", "mode": "lines+markers", "x": [x for x, _ in own], "y": [y for _, y in own],
                "xaxis": "x", "yaxis": f"y{number}" if number > 1 else "y", "legendgroup": str(dim), "name": str(dim),
                "showlegend": number == 1, "line": {"color": colour, "width": 1.6}, "marker": {"size": 6},
                "hovertemplate": f"latent size {dim}, iteration %{{x}}: {label} %{{y:.4g}}<extra></extra>",
            })  # fmt: skip
    yield Figure(
        name="outliers",
        title=title,
        caption="DBSCAN's noise in each model's latent space: how many frames, at which eps, and their share of the "
        "frames analysed. Grey: frames that any of the models holds for an outlier."
        + (f" In {n_without:,} latent spaces no radius gave few enough (analyse.max_outliers): none was taken, and "
           "they have no eps." if n_without else ""),
        table=Table({
            "iteration": [r[0] for r in rows], "latent_dim": [r[1] for r in rows], "n_outliers": [r[2] for r in rows],
            "eps": [r[3] for r in rows], "noise_percent": [r[4] for r in rows], "n_frames": [r[5] for r in rows],
            "n_outliers_of_all_models": [union_of[r[0]] for r in rows],
        }),
        draw=draw,
        traces=traces,
        layout={
            "xaxis": {
                "title": {"text": "iteration"}, "anchor": "y3", "tickformat": "d", **_whole_ticks(x for x, _ in union)
            },
            "yaxis": {"title": {"text": "outliers"}, "domain": [0.70, 1.0], "rangemode": "tozero"},
            "yaxis2": {"title": {"text": "eps"}, "domain": [0.36, 0.64], "rangemode": "tozero"},
            "yaxis3": {"title": {"text": "noise (%)"}, "domain": [0.0, 0.30], "rangemode": "tozero"},
            "legend": LEGEND_ABOVE | {"title": {"text": "latent size "}},
        },
        height=560,
    )  # fmt: skip


def _epochs(training: Training) -> np.ndarray:
    return training.history.get("epoch", 1.0 + np.arange(len(training.history["held_out_loss"])))


def _find_chosen(data: ReportData) -> dict[int, int]:
    """The latent size that the analysis of each iteration chose, where the model is of that iteration."""
    return {
        a.iteration: a.best_model.latent_dim
        for a in data.analyses
        if a.best_model and a.best_model.iteration == a.iteration
    }  # fmt: skip


def _colour_sizes(data: ReportData) -> dict[int, str]:
    sizes = {t.record.latent_dim for t in data.trainings}
    sizes |= {m.model.latent_dim for a in data.analyses for m in a.models}
    return {dim: style.CYCLE[place % len(style.CYCLE)] for place, dim in enumerate(sorted(sizes))}


def _log_ticks(traces: list[dict[str, Any]]) -> dict[str, Any]:
    """Round numbers, each written out: plotly leaves out their powers of ten."""
    values = np.concatenate([trace["y"] for trace in traces])
    values = values[values > 0]
    if not len(values):
        return {}
    low, high = np.log10(values.min()), np.log10(values.max())
    steps = (1, 2, 5) if high - low > 1.2 else (1, 1.5, 2, 3, 5, 7)
    ticks = [step * 10.0**power for power in range(int(np.floor(low)), int(np.ceil(high)) + 1) for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _whole_ticks(iterations: Iterable[int]) -> dict[str, int]:
    return {"dtick": 1} if max(iterations, default=0) <= 12 else {}
