"""The page of results: entries to HTML. The frame, its style and its script are report.html.

Whatever comes from files goes through `_safe` or, as JSON, into the page's script element.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

from bootstrap.runlog import METRICS

NONE = "\N{EN DASH}"
PERCENT = "\N{NO-BREAK SPACE}%"
SCORES = {"error": "test error", "soft_error": "test soft-error", "loss": "test loss, nats"}
COLUMNS = (  # heading, how it sorts
    *(("run", "text"), ("status", "text"), ("model", "text"), ("N", "number")),
    *(("seeds", "number"), ("steps", "number"), ("converges at", "number")),
    *(("gap there", "number"), ("final real", "number")),
    *(("final ideal", "number"), ("final gap", "number")),
)
DETAILS = {
    "gap_at_convergence": "gap at convergence",
    "max_abs_gap_until_convergence": "largest gap until then",
    "final_real": "final real",
    "final_ideal": "final ideal",
    "final_gap": "final gap",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure: its SVG, safe and with alt text, and its caption, plain text."""

    anchor: str
    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the page says of one run: plain text, but for thumbnails and pictures, which are SVG.

    `summary` is the content of summary.json; configuration and environment are by dotted name.
    """

    name: str
    anchor: str
    status: str = "partial"
    title: str = ""
    model: str = ""
    data: str = ""
    n_seeds: int = 0  # asked for, as are the steps; 0 where it is not known
    n_steps: int = 0
    config: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    thumbnails: dict[int, str] = field(default_factory=dict)  # by N
    pictures: tuple[Picture, ...] = ()

    @property
    def by_n(self) -> dict[int, dict[str, Any]]:
        """The numbers of each real world."""
        return {int(n): across for n, across in self.summary.get("n_samples", {}).items()}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a table shows: text, a smaller note under it, and what it is sorted by."""

    text: str = NONE
    note: str = ""
    value: float | str | None = None


def build_page(entries: Sequence[Entry]) -> str:
    """The whole page; it holds all that it shows and asks for nothing else."""
    parts = {
        "count": f"{len(entries)} run{'s' if len(entries) > 1 else ''}",
        "headings": "".join(_heading(*column) for column in COLUMNS),
        "rows": "\n".join(row for entry in entries for row in _rows(entry)),
        "options": "".join(
            f'<option value="{i}">{_safe(entry.name)}</option>' for i, entry in enumerate(entries)
        ),
        "articles": "\n".join(map(_article, entries)),
        "data": json.dumps([_compared(entry) for entry in entries]).replace("<", "\\u003c"),
    }
    frame = files("bootstrap").joinpath("report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], frame)  # once: values stay


def _safe(value: Any) -> str:
    return html.escape(str(value))


# ---------------------------------------------------------------- the table of runs


def _heading(name: str, kind: str) -> str:
    return f'<th scope="col" class="{kind}"><button type="button">{name}</button></th>'


def _rows(entry: Entry) -> Iterator[str]:
    """A row per real world; one for a run that has none."""
    status = f'<span class="status {entry.status}">{entry.status}</span>'
    for n, across in entry.by_n.items() or [(None, {})]:
        thumbnail = "" if n is None else entry.thumbnails.get(n, "")
        link = f'<a href="#{entry.anchor}">{thumbnail}<span>{_safe(entry.name)}</span></a>'
        cells = "".join(
            _cell(cell, heading, kind)
            for (heading, kind), cell in zip(COLUMNS[2:], _numbers(entry, n, across), strict=True)
        )
        yield (
            f'<tr><th scope="row" data-value="{_safe(entry.name)}">{link}</th>'
            f'<td data-label="status" data-value="{entry.status}">{status}</td>{cells}</tr>'
        )


def _numbers(entry: Entry, n: int | None, across: dict[str, Any]) -> list[Cell]:
    """What stands under the headings after `status`."""
    on = f"on {entry.data}" if entry.data else ""
    model = Cell(text=entry.model or NONE, note=on, value=entry.model)
    if n is None:
        return [model, *[Cell()] * (len(COLUMNS) - 3)]
    final = [_spread(across[f"final_{name}"]["error"]) for name in ("real", "ideal", "gap")]
    return [
        model,
        Cell(text=f"{n:,}", value=n),
        _of(across["n_seeds"], entry.n_seeds),
        _of(across["final_step"], entry.n_steps),
        _convergence(across),
        _spread(across["gap_at_convergence"]["error"]),
        *final,
    ]


def _of(found: int | None, asked: int) -> Cell:
    """How many, and of how many if some are missing."""
    note = f"of {asked:,}" if (found or 0) < asked else ""
    return Cell(text=NONE if found is None else f"{found:,}", note=note, value=found)


def _convergence(across: dict[str, Any]) -> Cell:
    n, n_seeds = across["n_converged"], across["n_seeds"]
    if not n:
        return Cell(note="not converged" if n_seeds else "")
    cell = _spread(across["convergence_step"], "{:,.0f}")
    return replace(cell, note=f"{n} of {n_seeds} seeds") if n < n_seeds else cell


def _spread(spread: dict[str, Any], form: str = "{:.1%}") -> Cell:
    """A mean, its interval below it."""
    if spread["mean"] is None:
        return Cell()
    mean, *ends = [_number(x, form) for x in (spread["mean"], *(spread["interval_95"] or ()))]
    note = f"{ends[0].removesuffix(PERCENT)} to {ends[1]}" if ends else ""
    return Cell(text=mean, note=note, value=spread["mean"])


def _number(value: float, form: str) -> str:
    return form.format(value).replace("%", PERCENT).replace("-", "\N{MINUS SIGN}")


def _cell(cell: Cell, heading: str, kind: str) -> str:
    note = f"<small>{_safe(cell.note)}</small>" if cell.note else ""
    value = "" if cell.value is None else _safe(cell.value)
    kind += " none" if (cell.text, cell.note) == (NONE, "") else ""
    return (
        f'<td class="{kind}" data-label="{heading}" data-value="{value}">'
        f"<span>{_safe(cell.text)}{note}</span></td>"
    )


# ---------------------------------------------------------------- one run


def _article(entry: Entry) -> str:
    notes = "".join(f'<p class="note {entry.status}">{_safe(note)}</p>' for note in entry.notes)
    figures = "".join(
        f'<figure id="{picture.anchor}-figure"><div>{picture.svg}</div>'
        f"<figcaption>{_safe(picture.caption)}</figcaption></figure>"
        for picture in entry.pictures
    )
    title = f"<p>{_safe(entry.title)}</p>" if entry.title not in ("", entry.name) else ""
    return (
        f'<article id="{entry.anchor}"><header><h2>{_safe(entry.name)}'
        f' <span class="status {entry.status}">{entry.status}</span></h2>{title}</header>'
        f'{notes}<div class="figures">{figures}</div>{_details_table(entry)}'
        f"{_folded('Configuration', entry.config)}{_folded('Environment', entry.environment)}"
        '<p class="up"><a href="#top">All runs</a></p></article>'
    )


def _details_table(entry: Entry) -> str:
    """Every score of every real world, with intervals."""
    if not entry.by_n:
        return ""
    headings = "".join(f'<th scope="col" class="number">{name}</th>' for name in DETAILS.values())
    rows = "".join(
        f'<tr><th scope="row">N = {n:,}, {SCORES[metric]}</th>'
        + "".join(
            _cell(_spread(across[key][metric], _form(metric)), heading, "number")
            for key, heading in DETAILS.items()
        )
        + "</tr>"
        for n, across in entry.by_n.items()
        for metric in METRICS
    )
    return (
        '<table class="cards"><thead><tr><th scope="col">score</th>'
        f"{headings}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _form(metric: str) -> str:
    return "{:.3f}" if metric == "loss" else "{:.1%}"


def _folded(summary: str, values: dict[str, str]) -> str:
    if not values:
        return ""
    pairs = "".join(f"<dt>{_safe(key)}</dt><dd>{_safe(text)}</dd>" for key, text in values.items())
    return f"<details><summary>{summary}</summary><dl>{pairs}</dl></details>"


# ---------------------------------------------------------------- two runs side by side


def _compared(entry: Entry) -> dict[str, Any]:
    """What the script sets beside another run's: text by name."""
    numbers: dict[str, str] = {"status": entry.status}
    for n, across in entry.by_n.items():
        numbers[f"N = {n:,}: converges at"] = _line(_convergence(across))
        for key, heading in DETAILS.items():
            for metric in METRICS:
                said = _line(_spread(across[key][metric], _form(metric)))
                numbers[f"N = {n:,}: {heading}, {SCORES[metric]}"] = said
    return {
        "name": entry.name,
        "anchor": entry.anchor,
        "picture": entry.pictures[0].anchor if entry.pictures else None,
        "config": entry.config,
        "environment": entry.environment,
        "numbers": numbers,
    }


def _line(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text
