"""What this machine has, what `auto` will choose, and what is missing, with the remedy."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bootstrap.environment import cpu_name, package_versions
from bootstrap.errors import ConfigurationError, DataError
from bootstrap.execution import bf16_units, has_compiler, resolve_flags
from bootstrap.runlog import load_runs
from bootstrap.shards import read_manifest

NEEDED = (
    "torch",
    "torchvision",
    "diffusers",
    "h5py",
    "numpy",
    "scipy",
    "matplotlib",
    "safetensors",
    "tyro",
    "tqdm",
)


def examine(data: Path, out: Path, weights: Path) -> Iterator[str]:
    """Lines of a report; ConfigurationError at its end if something that is needed is missing."""
    import torch

    classifier, denoiser = (
        resolve_flags(family=family, n_images=1 << 30) for family in ("classifier", "denoiser")
    )
    yield f"python       {sys.version.split()[0]}"
    yield "packages     " + ", ".join(
        f"{name} {found}" for name, found in package_versions().items()
    )
    yield f"processor    {cpu_name()}, {os.cpu_count()} cores, {bf16_units()}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"cuda         {', '.join(gpus) if gpus else 'none'}"
    yield f"compiler     {'found' if has_compiler() else 'none: eager mode, slower'}"
    yield f"memory       {_memory()}"
    yield f"free disk    {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB"
    yield f"auto means   {classifier.describe()} to train; {denoiser.describe()} to sample"
    shipped = sorted(path.name for path in weights.glob("*.safetensors"))
    no_data = f"none in {data}; make one with `make generate`"
    no_runs = f"none in {out}; make one with `make compare`"
    yield f"weights      {', '.join(shipped) or 'none'}"
    yield f"data sets    {', '.join(_data_sets(data)) or no_data}"
    yield f"runs         {', '.join(_runs(out)) or no_runs}"
    missing = [name for name in NEEDED if not _is_importable(name)]
    if missing:
        raise ConfigurationError(
            f"missing: {', '.join(missing)}; install with `make setup` or `pip install -e .`"
        )


def _is_importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB"


def _data_sets(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*/manifest.json")):
        try:
            manifest = read_manifest(path.parent)
            yield f"{path.parent} ({manifest.n('stream'):,} stream, {manifest.n('test'):,} test)"
        except DataError as error:
            yield f"{path.parent} (unreadable: {error})"


def _runs(folder: Path) -> Iterator[str]:
    for run in load_runs(folder):
        yield f"{run.path} ({run.status})"
