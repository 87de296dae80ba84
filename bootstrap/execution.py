"""How a run is executed: device, precision, compilation, threads.

Whatever changes bits is decided here, once.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from bootstrap.errors import ConfigurationError

Precision = Literal["auto", "fp32", "bf16"]
Switch = Literal["auto", "on", "off"]
Family = Literal["classifier", "denoiser"]
BatchNormOver = Literal["global", "local"]

log = logging.getLogger(__name__)
NEVER = 1 << 62
# Compiling costs half a minute or more; it pays from so many images through the network in one run.
# Measured with `make bench`: on avx512_bf16 it doubles the denoiser's speed and leaves a ResNet's
# training as it is. A denoiser is always compiled, so that extending a data set changes no flag.
COMPILE_PAYS_FROM_N_IMAGES = {
    ("denoiser", "cuda"): 0,
    ("denoiser", "amx_bf16"): 0,
    ("denoiser", "avx512_bf16"): 0,
    ("denoiser", "cpu"): 0,
    ("classifier", "cuda"): 0,
    ("classifier", "amx_bf16"): 300_000,
    ("classifier", "avx512_bf16"): NEVER,
    ("classifier", "cpu"): NEVER,
}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Everything that changes bits; part of a run's identity.

    So is the number of processes (`ranks`) that share each batch, since they add in another order,
    and what they take batch norm over: their images together, or each its own; and so is the number
    of seeds whose weights are stacked (`replicas`). Each is only named where there are several.
    """

    device: str
    precision: Literal["fp32", "bf16"]
    compiled: bool
    n_threads: int
    ranks: int = 1
    bn: BatchNormOver = "global"
    replicas: int = 1  # seeds that take their steps together

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return torch.device(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products and convolutions run in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> torch.autocast:
        """A context in which forward passes run at this precision."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16, enabled=enabled)

    def apply(self) -> None:
        """Set the number of threads; must come before anything is compiled."""
        torch.set_num_threads(self.n_threads)

    def to_json(self) -> dict[str, Any]:
        """For the run's identity; without fields at their default, so that new ones change none."""
        pairs = [(f, getattr(self, f.name)) for f in fields(self)]
        return {f.name: value for f, value in pairs if value != f.default}

    def describe(self) -> str:
        """One line for people."""
        mode = "compiled" if self.compiled else "eager"
        text = f"{self.device}, {self.precision}, {mode}, {self.n_threads} threads"
        if self.ranks > 1:
            text += f", {self.ranks} processes, {self.bn} batch norm"
        return text if self.replicas == 1 else f"{text}, {self.replicas} replicas"

    def stacked(self, replicas: int) -> Flags:
        """For so many seeds at once, eager; ConfigurationError for what does not go with it."""
        if replicas < 1:
            raise ConfigurationError(f"--replicas {replicas}: give at least 1")
        if replicas > 1 and self.ranks > 1:
            raise ConfigurationError("--replicas and torchrun: use one of them")
        return replace(self, replicas=replicas, compiled=self.compiled and replicas == 1)


def resolve_flags(
    device: str = "auto",
    precision: Precision = "auto",
    compiled: Switch = "auto",
    *,
    family: Family = "classifier",
    n_images: int = 0,
    n_threads: int | None = None,
) -> Flags:
    """Decide the flags of a run that trains on, or samples, `n_images` images."""
    name = resolve_device(device)
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine
    kind = name.partition(":")[0]
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(kind) else "fp32"
    units = bf16_units() if kind == "cpu" else kind
    pays = n_images >= COMPILE_PAYS_FROM_N_IMAGES.get((family, units), NEVER)
    wanted = {"on": True, "off": False, "auto": pays}[compiled]
    if wanted and kind == "cpu" and not has_compiler() and compiled == "auto":
        log.warning("no C++ compiler (g++) here: eager mode, slower")
    if wanted and kind == "cpu" and not has_compiler():
        if compiled == "on":
            raise ConfigurationError(
                "--compile on needs a C++ compiler (g++); install one or use --compile off"
            )
        wanted = False
    return Flags(
        device=name,
        precision=precision,
        compiled=wanted,
        n_threads=n_threads or (max(1, n_cores() // n_local) if kind == "cpu" else 1),
    )


def resolve_device(device: str) -> str:
    """The device that `device` names; auto is CUDA if there is any, else the CPU (never mps).

    ConfigurationError for a device that is not there.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise ConfigurationError(f"--device {device}: use auto, cpu, cuda, cuda:<index> or mps")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ConfigurationError(
                f"--device {device}: no CUDA device is available here; use --device cpu or auto"
            )
        if int(index or 0) >= torch.cuda.device_count():
            raise ConfigurationError(
                f"--device {device}: only {torch.cuda.device_count()} CUDA device(s) here"
            )
        return f"cuda:{int(index or 0)}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError(
            "--device mps: no Apple GPU is available here; use --device cpu or auto"
        )
    return kind


def has_fast_bf16(kind: str) -> bool:
    """Whether bf16 is faster than fp32 here (AMX, AVX512-BF16; Ampere and later)."""
    if kind == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return kind == "cpu" and bf16_units() != "cpu"


def bf16_units() -> str:
    """The fastest bf16 instructions of this CPU: amx_bf16, avx512_bf16, or `cpu` for none."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return next((name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)), "cpu")


def has_compiler() -> bool:
    """Whether torch.compile can build CPU kernels here."""
    return any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    )


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
