"""Checkpoints: tensors as safetensors, everything else as JSON; whole or not there; no pickle.

`<name>-<step>.safetensors` is published first, then its record `<name>-<step>.json` with the sha256
of the tensors' bytes. A checkpoint without a matching record does not count.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bootstrap.errors import StorageError
from bootstrap.files import pretty_json, replace, sha256_hex

log = logging.getLogger(__name__)
N_KEPT = 2
RETRY_AFTER_S = (1.0, 5.0)  # a network disk may come back


def write_checkpoint(
    folder: Path, name: str, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    """Save `tensors` and `meta` (JSON values) as the checkpoint of `step`.

    A disk that fails is tried again after a pause; StorageError if that does not help.
    """
    body = tensor_bytes(tensors)
    record = pretty_json({"sha256": sha256_hex(body), "step": step, "meta": meta})
    for pause_s in (*RETRY_AFTER_S, None):
        try:
            replace(folder / f"{name}-{step}.safetensors", body)
            replace(folder / f"{name}-{step}.json", record)
            return
        except StorageError as error:
            if pause_s is None:
                raise
            log.warning("%s: trying again in %g s", error, pause_s)
            time.sleep(pause_s)


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Tensors of any device as the bytes of a safetensors file."""
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})


def read_checkpoint(
    folder: Path, name: str, step: int
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and meta of the checkpoint of `step`; None if absent, or corrupt (a warning)."""
    record_path = folder / f"{name}-{step}.json"
    try:
        record = json.loads(record_path.read_bytes())
        body = (folder / f"{name}-{step}.safetensors").read_bytes()
        if sha256_hex(body) != record["sha256"]:
            raise ValueError("sha256 differs from its record")
        return load(body), record["meta"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        log.warning("checkpoint %s is corrupt (%s); it is ignored", record_path, error)
        return None


def checkpoint_steps(folder: Path, name: str) -> list[int]:
    """Steps of the checkpoints in `folder`, latest first; only those whose record was published."""
    suffixes = (path.stem.removeprefix(f"{name}-") for path in folder.glob(f"{name}-*.json"))
    return sorted((int(suffix) for suffix in suffixes if suffix.isdigit()), reverse=True)


def read_latest(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The latest checkpoint that is whole, or None; a corrupt one falls back to the one before."""
    for step in checkpoint_steps(folder, name):
        found = read_checkpoint(folder, name, step)
        if found is not None:
            return found
    return None


def remove_checkpoint(folder: Path, name: str, step: int) -> None:
    """Delete one checkpoint, its record first."""
    (folder / f"{name}-{step}.json").unlink(missing_ok=True)
    (folder / f"{name}-{step}.safetensors").unlink(missing_ok=True)


def keep_latest(folder: Path, name: str, n: int = N_KEPT) -> None:
    """Delete all but the latest `n` checkpoints of this name."""
    for step in checkpoint_steps(folder, name)[n:]:
        remove_checkpoint(folder, name, step)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors: `optimizer.<parameter>.<name>`."""
    return {
        f"optimizer.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimiser the state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under `<prefix>.<name>`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `<prefix>.<name>`, under `<name>`."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
