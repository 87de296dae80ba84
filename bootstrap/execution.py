"""How a run is executed: device, precision, compilation, threads. Whatever changes bits is decided here, once."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from bootstrap.errors import ConfigurationError

Precision = Literal["auto", "fp32", "bf16"]
Switch = Literal["auto", "on", "off"]

# Whether compiling pays, by device type and hardware, for runs of at least so many training images.
COMPILE_PAYS_FROM_N_IMAGES = {"cuda": 0, "cpu": 400_000}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Everything that changes bits; part of a run's identity."""

    device: str
    precision: Literal["fp32", "bf16"]
    compiled: bool
    n_threads: int

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
        """For the run's identity."""
        return asdict(self)

    def describe(self) -> str:
        """One line for people."""
        mode = "compiled" if self.compiled else "eager"
        return f"{self.device}, {self.precision}, {mode}, {self.n_threads} threads"


def resolve_flags(
    device: str = "auto",
    precision: Precision = "auto",
    compiled: Switch = "auto",
    *,
    n_images: int = 0,
) -> Flags:
    """Decide the flags of a run that trains on `n_images` images (more make compiling worth its start-up)."""
    name = resolve_device(device)
    kind = name.partition(":")[0]
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(kind) else "fp32"
    pays = n_images >= COMPILE_PAYS_FROM_N_IMAGES.get(kind, 1 << 62)
    wanted = {"on": True, "off": False, "auto": pays}[compiled]
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
        n_threads=n_cores() if kind == "cpu" else 1,
    )


def resolve_device(device: str) -> str:
    """auto -> cuda, else mps is never chosen by itself, else cpu; a device that is not there is refused."""
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
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
    if kind not in ("cpu", "mps"):
        raise ConfigurationError(f"--device {device}: use auto, cpu, cuda, cuda:<index> or mps")
    return kind


def has_fast_bf16(kind: str) -> bool:
    """Whether this hardware multiplies bf16 faster than fp32 (AMX, AVX512-BF16; Ampere and later)."""
    if kind == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return kind == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def has_compiler() -> bool:
    """Whether torch.compile can build CPU kernels here."""
    return any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    )


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def without_speedups(flags: Flags) -> Flags:
    """The same in fp32 and eager mode: what a plain machine would do."""
    return replace(flags, precision="fp32", compiled=False)
