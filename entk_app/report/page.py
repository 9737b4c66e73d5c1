"""The page: one HTML file with everything inside it, that asks nothing of any network."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as escape_html
from importlib import resources
from itertools import groupby
from typing import Any

import numpy as np

from entk_app import __version__
from entk_app.report.data import ReportData
from entk_app.report.figure import Figure, Missing
from entk_app.report.style import ON_DARK, colour_scale, themes
from entk_app.report.tables import Fact, TextTable, Told, describe_state, list_settings

#: Decisions that the page lists, the newest; all are in decisions.csv.
_MAX_DECISIONS = 200

#: What a browser may do with the page: nothing from outside it, no connection to anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; connect-src 'none'; form-action 'none'; base-uri 'none'"
)


@dataclass(frozen=True)
class Shown:
    """A figure of the page, and the picture (PNG, base64) that stands in where a browser cannot draw it."""

    figure: Figure
    stand_in: str | None


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    key: str
    title: str
    figures: tuple[Shown | Missing, ...]


def render_page(
    data: ReportData,
    facts: Sequence[Fact],
    tables: Sequence[TextTable],
    sections: Sequence[Section],
    told: Sequence[Told],
) -> str:
    """The whole page as HTML."""
    from plotly.offline import get_plotlyjs

    name = data.layout.root.resolve().name
    links = [("tables", "Tables"), *((s.key, s.title) for s in sections), ("decisions", "Decisions"), ("run", "Run")]
    body = [
        _render_header(data, name),
        _render_facts(facts),
        _render_notes(data.notes),
        '<nav aria-label="Sections"><ul>',
        *(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title in links),
        "</ul></nav>",
        _render_section("tables", "Tables", "".join(_render_table(table) for table in tables)),
        *(
            _render_section(s.key, s.title, _render_rows(s.figures))
            for s in sections
        ),
        _render_section("decisions", "Decisions", _render_decisions(told)),
        _render_section("run", "How it was run", _render_settings(list_settings(data))),
        f"<footer>entk-app {escape(__version__)}, made from {escape(str(data.layout.root))}. Figures are in "
        '<a href="figures/">figures/</a> as SVG, PNG and CSV, structures as PDB.</footer>',
    ]
    payload = {shown.figure.name: _encode(shown.figure) for s in sections for shown in s.figures
               if isinstance(shown, Shown) and shown.figure.traces}  # fmt: skip
    scales = {
        "light": {"rmsd": colour_scale(0.0, 0.88), "contacts": [[0, "rgba(0,114,178,0)"], [1, "#0072B2"]]},
        "dark": {"rmsd": colour_scale(0.2, 1.0), "contacts": [[0, "rgba(86,180,233,0)"], [1, "#56B4E9"]]},
    }
    looks = {"templates": themes(), "scales": scales, "lighter": ON_DARK}
    return "\n".join([
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(name)}: report</title>",
        f"<style>{_read('page.css')}</style>",
        "</head><body>",
        *body,
        *(f'<script type="application/json" id="data-{key}">{text}</script>' for key, text in payload.items()),
        f'<script type="application/json" id="themes">{_to_json(looks)}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{_read('page.js')}</script>",
        "</body></html>",
    ])  # fmt: skip


def escape(text: str) -> str:
    """Text as HTML; a number stays with its unit."""
    return escape_html(text).replace(" Å", "&nbsp;Å").replace(" %", "&nbsp;%").replace("-hours", "‑hours")


def _read(name: str) -> str:
    return resources.files("entk_app.report").joinpath(name).read_text(encoding="utf-8")


def _render_header(data: ReportData, name: str) -> str:
    word, why = describe_state(data)
    system, status = data.system, data.status
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(data.run.now))
    return (
        f'<header><div><p class="eyebrow">Folding campaign</p><h1>{escape(name)}</h1>'
        f"<p>{escape(system.name)}, {escape(system.model)}, {system.n_residues} residues; {escape(status.resource)}; "
        f"seed {status.seed}</p>"
        f'<p><span class="state state-{escape(status.state)}">{escape(word.replace("_", " "))}</span> '
        f"{escape(why)}</p>"
        f'<p class="soft">As it stood at {when}.</p></div>'
        '<button id="theme" type="button" aria-label="Light or dark">◐</button></header>'
    )


def _render_facts(facts: Iterable[Fact]) -> str:
    cards = "".join(
        f'<div class="fact fact-{fact.name} {"is-" + fact.answer.split()[0].lower() if fact.name == "folded" else ""}">'
        f"<dt>{escape(fact.question)}</dt><dd><strong>{escape(fact.answer)}</strong>"
        f"<span>{escape(fact.detail)}</span></dd></div>"
        for fact in facts
    )
    return f'<dl class="facts">{cards}</dl>'


def _render_notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<aside class="notes"><h2>What was left out</h2><ul>{items}</ul></aside>'


def _render_section(key: str, title: str, inner: str) -> str:
    return f'<section id="{key}"><h2>{escape(title)}</h2>{inner}</section>'


def _render_table(table: TextTable) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f'<tr{" class=ours" if number == 0 else ""}><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for number, row in enumerate(table.rows)
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="card" id="{table.name}"><div class="head"><h3>{escape(table.title)}</h3>'
        f'{_render_links(table.name, ("csv",))}</div><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(table.title)}"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><ul class="caption">{notes}</ul></div>'
    )


def _render_links(name: str, kinds: Iterable[str]) -> str:
    links = "".join(f'<a href="figures/{name}.{kind}" download>{kind.upper()}</a>' for kind in kinds)
    return f'<span class="files">{links}</span>'


def _render_rows(figures: Iterable[Shown | Missing]) -> str:
    """Figures alone on a line, and rows of those that share one."""
    rows = []
    for place, members in groupby(figures, lambda f: f.figure.place if isinstance(f, Shown) else f.place):
        cards = [_render_figure(member) for member in members]
        if place == "wide":
            rows += cards
        else:
            rows.append(f'<div class="row" style="--n:{len(cards)}">{"".join(cards)}</div>')
    return "".join(rows)


def _render_figure(shown: Shown | Missing) -> str:
    if isinstance(shown, Missing):
        return (
            f'<div class="card missing" id="{escape(shown.name)}"><h3>{escape(shown.title)}</h3>'
            f"<p>Left out. {escape(shown.reason)}</p></div>"
        )
    figure = shown.figure
    kinds = ("svg", "png", "csv", *(("pdb",) if figure.name.startswith("structure-") else ()))
    picture = ""
    if shown.stand_in is not None:
        picture = (
            f'<img class="stand-in" alt="{escape(figure.title)}" src="data:image/png;base64,{shown.stand_in}"'
            f"{' hidden' if figure.traces else ''}>"
        )
        if not figure.traces:
            # On a narrow screen its letters would be too small to read.
            label = escape(figure.title)
            picture = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{picture}</div>'
    n_dimensions = max((len(axes) for axes in figure.dimensions), default=0)
    choice = _render_choice(n_dimensions) if n_dimensions > 3 and figure.name == "latent" else ""
    plot = ""
    if figure.traces:
        plot = (
            f'<div class="plot" data-figure="{figure.name}" style="height:{figure.height}px" role="img" '
            f'aria-label="{escape(figure.title)}"></div>'
        )
    return (
        f'<figure class="card" id="{figure.name}"><div class="head"><h3>{escape(figure.title)}</h3>'
        f"{_render_links(figure.name, kinds)}</div>{choice}{plot}{picture}"
        f'<figcaption class="caption">{escape(figure.caption)}</figcaption></figure>'
    )


def _render_choice(n_dimensions: int) -> str:
    selects = "".join(
        f'<label>{axis} <select data-axis="{place}">'
        + "".join(
            f'<option value="{k}"{" selected" if k == place else ""}>z{k + 1}</option>' for k in range(n_dimensions)
        )
        + "</select></label>"
        for place, axis in enumerate("xyz")
    )
    return f'<div class="choice" role="group" aria-label="Latent dimensions that are drawn">{selects}</div>'


def _render_decisions(told: Sequence[Told]) -> str:
    if not told:
        return '<div class="card missing"><p>Left out. No decision has been recorded.</p></div>'
    kept = told[-_MAX_DECISIONS:]
    items = "".join(
        f'<li><span class="when">{_clock(one.hours)}</span><div><p><strong>Iteration {one.iteration}.</strong> '
        f'{escape(one.headline)} <span class="soft">{escape(one.numbers)}</span></p>'
        f"{_render_actions(one.actions)}</div></li>"
        for one in reversed(kept)
    )
    said = f"The newest {len(kept)} of {len(told):,}, newest first." if len(kept) < len(told) else "Newest first."
    return (
        f'<div class="card"><div class="head"><p class="caption">{said} The time is the campaign\'s own, without that '
        f'between its pilots.</p>{_render_links("decisions", ("csv",))}</div><ol class="decisions">{items}</ol></div>'
    )


def _render_actions(actions: Sequence[str]) -> str:
    if not actions:
        return ""
    items = "".join(f"<li>{escape(action)}</li>" for action in actions)
    if len(actions) <= 4:
        return f"<ul>{items}</ul>"
    return f"<details><summary>{len(actions)} simulations</summary><ul>{items}</ul></details>"


def _render_settings(settings: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in settings)
    return f'<div class="card"><dl class="settings">{rows}</dl></div>'


def _clock(hours: float) -> str:
    seconds = round(hours * 3600.0)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _encode(figure: Figure) -> str:
    """What page.js draws: arrays as base64 of their bytes, which takes a third of the same numbers in decimals."""
    from plotly.graph_objects import Figure as PlotlyFigure

    drawn = PlotlyFigure(data=list(figure.traces), layout=dict(figure.layout), skip_invalid=False)
    drawn.layout.template = None
    content = drawn.to_dict()
    content["layout"].pop("template", None)
    content["scale"] = figure.scale
    content["is3d"] = figure.is_3d
    content["dimensions"] = [[_pack(values) for values in axes] for axes in figure.dimensions]
    return _to_json(content)


def _pack(values: np.ndarray) -> dict[str, str]:
    return {"dtype": "f4", "bdata": base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()}


def _to_json(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, default=_to_plain)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
