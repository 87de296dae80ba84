"""A results folder as one page that needs nothing but itself. No torch.

Everything is computed from the records, so that the page is never older than they are. A run that
cannot be read is on the page with what is wrong with it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bootstrap.caption import caption
from bootstrap.errors import BootstrapError, ConfigurationError, DataError
from bootstrap.files import replace
from bootstrap.page import Entry, Picture, build_page
from bootstrap.pairing import flat
from bootstrap.plot import Line, build_figure, render, title, world_lines
from bootstrap.reuse import reuse_of
from bootstrap.reuse_plot import plot_reuse, reuse_caption
from bootstrap.runlog import Run, load_run
from bootstrap.summary import summarise

NAME = "report.html"
THUMBNAIL_PX = (96, 30)
NOT_SHOWN = ("schema", "run", "recipe", "grid")  # of an identity: what the configuration has too
SVG_NOISE = re.compile(
    r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>"
    r'| xmlns(?::\w+)?="[^"]*"| version="[^"]*"| (?:width|height)="[\d.]+pt"',
    re.DOTALL,
)


def write_report(root: Path, out: Path | None = None) -> Path:
    """Write the page of every run under `root`, at any depth; returns its path.

    By default `<root>/report.html`. ConfigurationError if there is no run.
    """
    folders = [path.parent for path in sorted(root.rglob("pair.json"))]
    if not folders:
        raise ConfigurationError(f"{root}: no runs there; `make compare` makes one")
    out = out or root / NAME
    page = build_page([_entry(root, folder, i) for i, folder in enumerate(folders, start=1)])
    replace(out, page.encode())
    return out


def _entry(root: Path, folder: Path, number: int) -> Entry:
    """What the page says of a run; one that cannot be read must not hide the others."""
    is_root = folder == root
    name = folder.resolve().name if is_root else folder.relative_to(root).as_posix()
    entry = Entry(name=name, anchor=f"run-{number}")
    try:
        return _read_entry(load_run(folder), entry)
    except Exception as error:
        kind = "" if isinstance(error, BootstrapError) else f"{type(error).__name__}: "
        return replace_fields(entry, status="unreadable", notes=(f"Not readable. {kind}{error}",))


def _read_entry(run: Run, entry: Entry) -> Entry:
    if not isinstance(run.config, dict):
        raise DataError(f"{run.path}/pair.json: not a JSON object")
    summary, recipe = summarise(run), run.config.get("recipe") or {}
    ideal, *reals = world_lines(run)
    return replace_fields(
        entry,
        status=run.status if run.seeds else "empty",
        title=title(run),
        config=_configuration(run.config),
        environment=_environment(run.config),
        model=str(recipe.get("model") or ""),
        data=str((run.config.get("data") or {}).get("name") or ""),
        n_seeds=len(run.config.get("seeds") or ()),
        n_steps=recipe.get("n_steps") or 0,
        summary=summary,
        notes=tuple(_notes(run)),
        thumbnails={
            n: _thumbnail([ideal, real]) for n, real in zip(run.n_samples, reals, strict=True)
        },
        pictures=tuple(_pictures(run, summary, entry.anchor)),
    )


def _configuration(config: dict[str, Any]) -> dict[str, str]:
    """Everything that was asked for, as text by dotted name."""
    others = {k: v for k, v in config.items() if k not in ("environment", "resumed_with")}
    identity = others.pop("identity", None) or {}
    unsaid = {
        k: v for k, v in identity.items() if k not in (*NOT_SHOWN, *(others.keys() - {"data"}))
    }
    if "data" in unsaid:
        unsaid["data sha256"] = unsaid.pop("data")
    return {key: _text(value) for key, value in flat(others | unsaid).items()}


def _environment(config: dict[str, Any]) -> dict[str, str]:
    found = flat(config.get("environment") or {})
    for number, later in enumerate(config.get("resumed_with") or (), start=1):
        found |= flat(later, f"resumed {number}: ")
    words = found.get("argv")
    command = {"command": " ".join(map(str, words))} if isinstance(words, list) else {}
    return command | {key: _text(value) for key, value in found.items() if key != "argv"}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def _notes(run: Run) -> Iterator[str]:
    """What a reader must know before the figure."""
    failures = sorted(run.path.glob("seed-*/*.failed.json"))
    for path in failures:
        found = json.loads(path.read_bytes())
        world = path.name.removesuffix(".failed.json")
        why = found.get("reason") or "a number is not finite"
        yield f"{path.parent.name}, {world} stopped at step {found.get('step', '?')}: {why}."
    if not run.seeds:
        yield "No record yet."
    elif run.status == "partial":
        yield "Not finished: the command that started it goes on where it stopped."


# ---------------------------------------------------------------- pictures


def _pictures(run: Run, summary: dict[str, Any], anchor: str) -> Iterator[Picture]:
    if not run.seeds:
        return
    yield Picture(
        anchor=f"{anchor}-curves",
        svg=_inline(build_figure(run, has_caption=False), f"{anchor}-curves", _alt(run, summary)),
        caption=caption(run),
    )
    reuse = reuse_of(run)
    if any(reuse.rates.values()):
        figure = plot_reuse(reuse, heading=title(run), has_caption=False)
        n_samples = ", ".join(f"{n:,}" for n in reuse.rates)
        alt = f"Effective reuse rate by passes over the N samples, for N = {n_samples}."
        yield Picture(
            anchor=f"{anchor}-reuse",
            svg=_inline(figure, f"{anchor}-reuse", alt),
            caption=reuse_caption(run, reuse),
        )


def _alt(run: Run, summary: dict[str, Any]) -> str:
    """The figure in words."""
    worlds = ", ".join(f"N = {n:,}" for n in run.n_samples) or "no real world yet"
    said = [f"Test error by SGD step of the ideal world and real worlds ({worlds}), and their gap."]
    for n, across in summary["n_samples"].items():
        real, ideal = (across[f"final_{w}"]["error"]["mean"] for w in ("real", "ideal"))
        if real is not None and ideal is not None:
            at = f"At step {across['final_step']:,}, N = {int(n):,}"
            said.append(f"{at}: real {real:.1%}, ideal {ideal:.1%}.")
    return " ".join(said)


def _inline(figure: Figure, prefix: str, alt: str) -> str:
    """The figure for the middle of a page: no address, no id that another figure may have."""
    figure.set_facecolor("none")
    for ax in figure.axes:
        ax.set_facecolor("none")
    text = render(figure, "svg").decode()
    svg = SVG_NOISE.sub("", text[text.index("<svg") :]).replace("xlink:href", "href")
    svg = svg.replace(' id="', f' id="{prefix}-').replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r"#([0-9a-f]{2})\1\1\b", _themed, svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg.replace('href="#', f'href="#{prefix}-'))
    said = html.escape(alt)
    opening = f'<svg id="{prefix}" role="img" aria-label="{said}"'
    head, _, body = svg.partition(">")
    return f"{head.replace('<svg', opening, 1)}><title>{said}</title>{body}"


def _themed(grey: re.Match[str]) -> str:
    """A grey as that much ink on the page's paper, so that figures are light or dark as it is."""
    return f"color-mix(in srgb, var(--ink) {100 - int(grey[1], 16) / 2.55:.0f}%, var(--paper))"


def _thumbnail(lines: list[Line]) -> str:
    """The curves without axes, as small as a word; empty without records."""
    drawn = [(line, *_mean(line)) for line in lines]
    drawn = [(line, steps, errors) for line, steps, errors in drawn if len(steps) > 1]
    if not drawn:
        return ""
    width, height = THUMBNAIL_PX
    longest = np.log(max(steps[-1] for _, steps, _ in drawn))
    low = min(errors.min() for _, _, errors in drawn)
    range_ = max(errors.max() for _, _, errors in drawn) - low or 1.0
    paths = []
    for line, steps, errors in reversed(drawn):  # the ideal world on top
        x = 2 + (width - 4) * np.log(steps) / max(longest, 1e-9)
        y = 2 + (height - 4) * (1 - (errors - low) / range_)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        is_dashed = line.n_samples is None
        look = 'class="ideal"' if is_dashed else f'stroke="{to_hex(line.colour)}"'
        paths.append(f'<polyline points="{points}" {look}/>')
    return (
        f'<svg class="thumbnail" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f"{''.join(paths)}</svg>"
    )


def _mean(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Steps from 1 on and the mean error there, where every seed has one."""
    if not len(line.errors):
        return np.zeros(0), np.zeros(0)
    mean = line.errors.mean(axis=0)  # NaN where a seed has none
    known = np.isfinite(mean) & (line.steps > 0)
    return line.steps[known], mean[known]
