"""The curves of a run as one CSV table. No torch."""

from __future__ import annotations

import csv
import io
from typing import Any

from bootstrap.runlog import IDEAL, METRICS, Run, real_name

CSV_COLUMNS = (
    *("seed", "world", "n_samples", "step"),
    *(f"test_{metric}" for metric in METRICS),
    "train_error",
    *(f"gap_{metric}" for metric in METRICS),
)


def curves_csv(run: Run) -> bytes:
    """A row per seed, world and evaluation; gaps are in the rows of real worlds."""
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for seed in run.seeds:
        ideal = {row["step"]: row for row in run.rows(seed, IDEAL)}
        for row in ideal.values():
            table.writerow({"seed": seed, "world": IDEAL} | row)
        for n in run.n_samples:
            key = {"seed": seed, "world": "real", "n_samples": n}
            partner = {} if (seed, n) in run.refused else ideal
            for row in run.rows(seed, real_name(n)):
                table.writerow(key | row | _gaps(row, partner.get(row["step"], {})))
    return buffer.getvalue().encode()


def _gaps(real: dict[str, Any], ideal: dict[str, Any]) -> dict[str, float]:
    keys = {f"gap_{metric}": f"test_{metric}" for metric in METRICS}
    both = {name: (real.get(key), ideal.get(key)) for name, key in keys.items()}
    return {name: a - b for name, (a, b) in both.items() if a is not None and b is not None}
