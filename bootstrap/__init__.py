"""Deep Bootstrap: real-vs-ideal world benchmark harness.

Importing it is light: nothing here imports torch.

from bootstrap import load_runs, gap, plot_pair
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Recipe": "bootstrap.recipe",
    "RunWriter": "bootstrap.runlog",
    "Scores": "bootstrap.records",
    "ShardDataset": "bootstrap.shard_dataset",
    "World": "bootstrap.worlds",
    "explain": "bootstrap.explanation",
    "gap": "bootstrap.curves",
    "load_kept": "bootstrap.kept",
    "load_run": "bootstrap.runlog",
    "load_runs": "bootstrap.runlog",
    "plot_pair": "bootstrap.plot",
    "pool_n_samples": "bootstrap.loop",
    "pretrain": "bootstrap.pretraining",
    "run_pair": "bootstrap.pair",
    "stream": "bootstrap.loop",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bootstrap' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
