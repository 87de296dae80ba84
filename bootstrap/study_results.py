"""What saved pairs tell of several design choices against one baseline. No torch.

Every choice gets a folder with its decomposition; beside them lie the table, what each changes as N
grows, and the map of all. Each is compared on the seeds and N that it has in common with the
baseline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from bootstrap import files
from bootstrap.choice_map import BASELINE, write_map
from bootstrap.choice_table import effect_lines, study_json, table_csv, table_lines
from bootstrap.decompose_plot import write_explanation
from bootstrap.effect_plot import write_effects
from bootstrap.errors import BootstrapError, ConfigurationError
from bootstrap.explanation import explain, explain_lines
from bootstrap.files import pretty_json
from bootstrap.runlog import Run, load_run

LONGEST_NAME = 80  # of a choice's folder


def explain_saved(runs: Sequence[Path], results: Path, out: Path | None) -> Iterator[str]:
    """Explain a saved baseline and the choices after it: one alone, or several as a study."""
    baseline, *choices = map(_whole, runs)
    zero = load_run(baseline)
    if len(choices) > 1:
        yield from write_study(zero, load_choices(choices), out or results / "explain" / zero.name)
        return
    choice = load_run(choices[0])
    explained, paths = write_explanation(zero, choice, out or choice.path / "explain" / zero.name)
    yield from explain_lines(explained)
    yield from map(str, paths)


def write_study(baseline: Run, choices: Mapping[str, Run], folder: Path) -> Iterator[str]:
    """Write all into `folder`; yields lines for people, the paths last.

    Raises what `bootstrap.explanation.explain` does, before anything is written.
    """
    found = [(text, _explain(baseline, text, run)) for text, run in choices.items()]
    names = folder_names([*choices])
    paths: list[Path] = []
    for text, explained in found:
        own = folder / names[text]
        paths += write_explanation(baseline, choices[text], own, explained)[1]
        yield f"\n{text}"
        yield from explain_lines(explained)
    contents = {"table.csv": table_csv(found), "study.json": pretty_json(study_json(found))}
    for name, content in contents.items():
        files.replace(folder / name, content)
    paths += [folder / name for name in contents]
    paths += [*write_effects(found, folder), *write_map(baseline, choices, folder / "map")]
    yield ""
    yield from table_lines(found)
    yield from effect_lines(found)
    yield from map(str, paths)


def load_choices(folders: Sequence[Path]) -> dict[str, Run]:
    """Saved runs by the names of their folders; ConfigurationError if two have the same, or one
    that of the baseline in tables and figures.
    """
    runs = {folder.name: load_run(folder) for folder in map(_whole, folders)}
    if len(runs) < len(folders):
        raise ConfigurationError("two of the choices' folders have one name; rename one")
    if BASELINE in runs:
        raise ConfigurationError(f"a choice's folder is called {BASELINE!r}; rename it")
    return runs


def folder_names(texts: Sequence[str]) -> dict[str, str]:
    """The choices' texts as names of folders; what would not tell one ends in a hash of it."""
    short = {text: folder_name(text) for text in texts}
    taken = [name.lower() for name in short.values()]
    return {
        text: name if taken.count(name.lower()) == 1 else f"{name[:71]}-{_digest(text)}"
        for text, name in short.items()
    }


def folder_name(text: str) -> str:
    """A choice's text as the name of a folder; a long one ends in a hash of the text."""
    name = re.sub(r"[^A-Za-z0-9.=_+-]+", "_", text).strip("._")
    if 0 < len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{_digest(text)}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def _whole(folder: Path) -> Path:
    """The path with a last part that names the folder, also for `.`; links are not followed."""
    return Path(os.path.normpath(folder.absolute()))


def _explain(baseline: Run, text: str, run: Run) -> dict[str, Any]:
    try:
        return explain(baseline, run)
    except BootstrapError as error:
        raise type(error)(f"{text}: {error}") from None
