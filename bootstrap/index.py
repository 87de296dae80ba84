"""The README of a results folder: a picture and a sentence for every result there. No torch."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from bootstrap.caption import about_data, about_training
from bootstrap.errors import BootstrapError, ConfigurationError
from bootstrap.files import replace
from bootstrap.presets.figure import SCALES
from bootstrap.presets.figures import build_figure
from bootstrap.runlog import load_run

NAME = "README.md"
WIDTH_PX = 360
HEAD = (
    "# Results\n\nWritten by `deep-bootstrap report --readme`."
    " A name leads to its records or numbers.{}\n\n"
)
STUDY = "study.json"  # what `explain --choice` writes beside its map
ABOUT_STUDY = (
    "Design choices against one baseline: to the right if the ideal world is faster, upwards if the"
    " real world converges later, blue if test error falls."
)
TABLE = "| | |\n|---|---|\n"


def write_index(root: Path) -> Path:
    """Write `<root>/README.md` of every run and figure under `root`; returns its path.

    Links are relative. ConfigurationError if there is no picture.
    """
    rows = list(_rows(root))
    if not rows:
        raise ConfigurationError(f"{root}: no figure of a run there; `make compare` makes one")
    path = root / NAME
    notes = [f"[{note.name}]({quote(note.name)})" for note in sorted(root.glob("*.md"))]
    others = ", ".join(note for note in notes if NAME not in note)
    said = f" Beside them: {others}." if others else ""
    replace(path, (HEAD.format(said) + TABLE + "".join(rows)).encode())
    return path


def _rows(root: Path) -> Iterator[str]:
    """Figures of several runs first, then studies of choices, then runs."""
    figures = [*sorted(root.rglob("figures/*.png")), *sorted(root.rglob("scatter.png"))]
    for picture in figures:
        yield _row(root, picture, picture.with_suffix(".csv"), picture.stem, about_figure(picture))
    for picture in sorted(root.rglob("map.png")):
        if (picture.parent / STUDY).exists():
            folder = picture.parent
            yield _row(root, picture, folder, folder.relative_to(root).as_posix(), ABOUT_STUDY)
    for picture in sorted(root.rglob("curves.png")):
        if (picture.parent / "pair.json").exists():
            folder = picture.parent
            yield _row(
                root, picture, folder, folder.relative_to(root).as_posix(), about_run(folder)
            )


def _row(root: Path, picture: Path, target: Path, name: str, about: str) -> str:
    image, link = (quote(path.relative_to(root).as_posix()) for path in (picture, target))
    alt = html.escape(name)
    thumbnail = f'<a href="{image}"><img src="{image}" width="{WIDTH_PX}" alt="{alt}"></a>'
    return f"| {thumbnail} | [**{_plain(name)}**]({link}): {_plain(about)} |\n"


def about_figure(picture: Path) -> str:
    """What a figure of the paper shows; of another scatter, that it is one."""
    for scale in SCALES:
        name = picture.stem.removesuffix(f"-{scale}")
        if name != picture.stem:
            try:
                return f"{build_figure(name, scale).about}."
            except BootstrapError:
                break
    return "Real against ideal soft-error at convergence, a point for each run and N."


def about_run(folder: Path) -> str:
    """The sentences of a run's caption on its data and training."""
    try:
        run = load_run(folder)
        said = (about_data(run.config), about_training(run, run.config.get("recipe") or {}))
        return " ".join(sentence for sentence in said if sentence) or "A run of its own loop."
    except (BootstrapError, AttributeError, TypeError) as error:
        return f"Not readable: {error}"


def _plain(text: str) -> str:
    """Text that a table of Markdown shows as it is."""
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
