"""Is this run what it says it is? Configuration, records, marks, and that its worlds are pairs.

No torch.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from bootstrap.errors import DataError
from bootstrap.files import file_sha256
from bootstrap.image_results import read_results
from bootstrap.pairing import first_disagreement
from bootstrap.problems import Problem, Report
from bootstrap.runlog import IDEAL, load_run, read_rows, real_name

ROUNDING = 1e-9  # of a mean over bits


def verify_run(folder: Path) -> Report:
    """Check that the configuration and every record file of a run can be read, in step order."""
    problems: list[Problem] = []
    try:
        check_schema(json.loads((folder / "pair.json").read_bytes()), "pair")
    except (OSError, ValueError) as error:
        remedy = "restore it: without it the run can be neither read nor resumed"
        what = "not the configuration of a pair"
        problems.append(Problem(what=what, file="pair.json", why=str(error), remedy=remedy))
    n_rows = {}
    for path in sorted(folder.glob("seed-*/*.jsonl")):
        name = str(path.relative_to(folder))
        try:
            rows = read_rows(path)
            n_rows[name] = len(rows)
            problems += _check_rows(name, rows)
            kind = "step_record" if name.endswith("-every-step.jsonl") else "record"
            for number, row in enumerate(rows, start=1):
                check_schema(row, kind, f"row {number}: ")
        except (DataError, ValueError) as error:
            problems.append(_bad_rows(name, None, str(error)))
    problems += _check_marks(folder, n_rows)
    if not problems:
        problems += [*_check_pairs(folder), *_check_test_results(folder)]
    return Report(folder=folder, n_samples=n_rows, problems=tuple(problems))


def _check_marks(folder: Path, n_rows: dict[str, int]) -> list[Problem]:
    """A world that is marked as done has all its rows, and the weights that it ended with."""
    problems = []
    for path in sorted(folder.glob("seed-*/*.done.json")):
        mark, world = json.loads(path.read_bytes()), path.name.removesuffix(".done.json")
        rows, weights = f"{path.parent.name}/{world}.jsonl", path.with_name(f"{world}.safetensors")
        if n_rows.get(rows) != mark["n_rows"]:
            why = f"{n_rows.get(rows, 0)} rows, {path.name} says {mark['n_rows']}"
            problems.append(_bad_rows(rows, None, why))
        if weights.exists() and file_sha256(weights) != mark["weights_sha256"]:
            name, remedy = str(weights.relative_to(folder)), "do not use them"
            why = f"sha256 differs from the one in {path.name}"
            problems.append(Problem(what="other weights", file=name, why=why, remedy=remedy))
    return problems


def _check_pairs(folder: Path) -> list[Problem]:
    """Every real world was one run with the ideal world of its seed until the first reuse."""
    run, problems = load_run(folder), []
    for seed in run.seeds:
        ideal = run.rows(seed, IDEAL)
        for n in run.n_samples:
            found = first_disagreement(run.rows(seed, real_name(n)), ideal, run.config, n)
            if found is not None:
                name = f"seed-{seed}/{real_name(n)}.jsonl"
                what, remedy = "no pair with ideal.jsonl", "restore the file that was changed, or"
                remedy += " run the same compare command with --overwrite"
                problems.append(
                    Problem(what=what, file=name, row=found.row, why=str(found), remedy=remedy)
                )
    return problems


def _check_test_results(folder: Path) -> list[Problem]:
    """Scores per test image are those of the records: the same evaluations, the same errors."""
    run, problems = load_run(folder), []
    for path in sorted(folder.glob("seed-*/*-test.npz")):
        world, seed = (
            path.name.removesuffix("-test.npz"),
            int(path.parent.name.removeprefix("seed-")),
        )
        errors = {row["step"]: row["test_error"] for row in run.rows(seed, world)}
        try:
            rows = read_results(path).rows()
            if run.status == "complete" and [step for step, _ in rows] != [*errors]:
                raise DataError("its evaluations are not those of the records")
            for step, scores in rows:
                error = 1 - float(scores.correct.mean())
                if abs(error - errors.get(step, error)) > ROUNDING:
                    raise DataError(
                        f"step {step}: error {error:g}, the record has {errors[step]:g}"
                    )
        except DataError as error:
            what, remedy = "not the results of the records", "run compare again with --overwrite"
            name = str(path.relative_to(folder))
            problems.append(Problem(what=what, file=name, why=str(error), remedy=remedy))
    return problems


def check_schema(value: Any, kind: str, where: str = "") -> None:
    """ValueError unless `value` is a `pair`, `record` or `step_record` of run.schema.json."""
    error = best_match(_validator(kind).iter_errors(value))
    if error is not None:
        path = ".".join(map(str, error.absolute_path))
        raise ValueError(f"{where}{f'{path}: ' if path else ''}{error.message}")


@cache
def _validator(kind: str) -> Draft202012Validator:
    schema = json.loads(Path(__file__).with_name("run.schema.json").read_bytes())
    return Draft202012Validator({**schema, "$ref": f"#/$defs/{kind}"})


def _check_rows(name: str, rows: list[dict[str, Any]]) -> list[Problem]:
    for number, (before, row) in enumerate(pairwise(rows), start=2):
        if row["step"] <= before["step"]:
            why = f"step {row['step']} follows step {before['step']}"
            return [_bad_rows(name, number, why)]
        if row.get("samples_seen", 0) < before.get("samples_seen", 0):
            why = f"samples_seen {row.get('samples_seen')} follows {before['samples_seen']}"
            return [_bad_rows(name, number, why)]
    return []


def _bad_rows(name: str, row: int | None, why: str) -> Problem:
    remedy = "move the file away and run the same compare command again"
    return Problem(what="not a row of records", file=name, row=row, why=why, remedy=remedy)
