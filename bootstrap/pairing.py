"""Whether two worlds may be subtracted: a gap is between the two worlds of one pair. No torch.

Up to the first reuse the two are one run, so their records must agree there; afterwards they still
share the learning rate and the number of samples. The two records of one step are the witness.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

ALWAYS = ("samples_seen", "lr")
UNTIL_REUSE = ("unique_samples_seen", "ids_hash")
SCORES = ("test_error", "test_soft_error", "test_loss")
ROUNDING = 1e-3  # of a score before the first update, on an accelerator


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """The first thing in which a real world is not the ideal one although it should be."""

    row: int  # of the real world's file, from 1
    step: int
    field: str
    real: Any
    ideal: Any

    def __str__(self) -> str:
        return f"{self.field} at step {self.step} is {self.real}, in the ideal world {self.ideal}"


def first_disagreement(
    real: list[dict[str, Any]], ideal: list[dict[str, Any]], config: dict[str, Any], n_samples: int
) -> Disagreement | None:
    """Where the records of a real world and of the ideal one show that they are no pair.

    `config` is pair.json's content. If it knows no batch size the first reuse is unknown, and only
    what always agrees is compared. On a CPU the shared part has equal bits; elsewhere training
    twice rounds differently, so that scores are compared before the first update only. Where a
    choice looks at the N samples themselves (`shares_prefix` false) nothing is shared.
    """
    batch_size = (config.get("recipe") or {}).get("batch_size")
    shares_prefix = config.get("shares_prefix", True)
    reuse_step = n_samples // batch_size if batch_size and shares_prefix else -1
    flags = (config.get("identity") or {}).get("flags") or {}
    is_exact = flags.get("device", "cpu") == "cpu"
    by_step = {row["step"]: row for row in ideal}
    for number, row in enumerate(real, start=1):
        step, other = row["step"], by_step.get(row["step"], {})
        names = ALWAYS + (UNTIL_REUSE if step <= reuse_step else ())
        if step <= reuse_step and (is_exact or step == 0):
            names += SCORES
        for name in names:
            a, b = row.get(name), other.get(name)
            is_close = not is_exact and name in SCORES and isclose(a or 0, b or 0, rel_tol=ROUNDING)
            if a != b and not is_close and None not in (a, b):
                return Disagreement(row=number, step=step, field=name, real=a, ideal=b)
    return None


def failure(folder: Path, world: str) -> str | None:
    """Which part of a seed in `folder` failed that the gap of the real `world` needs; or None.

    A replay of the trunk serves the worlds that are not done.
    """
    replay = () if (folder / f"{world}.done.json").exists() else ("replay",)
    for label in ("trunk", "ideal", *replay, world):
        path = folder / f"{label}.failed.json"
        if path.exists():
            step = json.loads(path.read_bytes()).get("step", "?")
            return f"{label} failed at step {step}"
    return None


def identity_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The fields in which two identities differ, with both values; fields of fields as `a.b`."""
    flat_one, flat_other = flat(one), flat(other)
    keys = sorted(flat_one.keys() | flat_other.keys())
    return [
        f"{key} ({_short(flat_one.get(key))} and {_short(flat_other.get(key))})"
        for key in keys
        if flat_one.get(key) != flat_other.get(key)
    ]


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested object as one: the fields of a field `a` are named `a.b`."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= (
            flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
        )
    return found


def _short(value: Any) -> str:
    text = "default" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
