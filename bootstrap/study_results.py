"""What saved pairs tell of several design choices against one baseline. No torch.

Every choice gets a folder with its decomposition; beside them lie the table, what each changes as N
grows, and the map of all. Each is compared on the seeds and N that it has in common with the
baseline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from bootstrap import files
from bootstrap.choice_map import write_map
from bootstrap.choice_table import effect_lines, study_json, table_csv, table_lines
from bootstrap.decompose_plot import write_explanation
from bootstrap.effect_plot import write_effects
from bootstrap.errors import ConfigurationError
from bootstrap.explanation import explain_lines
from bootstrap.files import pretty_json
from bootstrap.runlog import Run, load_run

LONGEST_NAME = 80  # of a choice's folder


def explain_saved(runs: Sequence[Path], results: Path, out: Path | None) -> Iterator[str]:
    """Explain a saved baseline and the choices after it: one alone, or several as a study."""
    baseline, *choices = runs
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

    Raises what `bootstrap.explanation.explain` does.
    """
    paths: list[Path] = []
    found: list[tuple[str, dict[str, Any]]] = []
    for text, run in choices.items():
        explained, own = write_explanation(baseline, run, folder / folder_name(text))
        found.append((text, explained))
        paths += own
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
    """Saved runs by the names of their folders; ConfigurationError if two have the same."""
    runs = {folder.absolute().name: load_run(folder) for folder in folders}
    if len(runs) < len(folders):
        raise ConfigurationError("two of the choices' folders have one name; rename one")
    return runs


def folder_name(text: str) -> str:
    """A choice's text as the name of a folder; a long one ends in a hash of the text."""
    name = re.sub(r"[^A-Za-z0-9.=_+-]+", "_", text).strip("_")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{sha256(text.encode()).hexdigest()[:8]}"
