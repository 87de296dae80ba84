"""What a run was made with and on: versions, revision, hardware.

For people; no part of a run's identity.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bootstrap.execution import Flags, bf16_units

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "numpy",
    "scipy",
    "h5py",
    "safetensors",
    "matplotlib",
)


def describe_environment(flags: Flags) -> dict[str, Any]:
    """Git revision, arguments, versions and hardware, as JSON values."""
    return {
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": platform.platform(),
        "hardware": hardware(flags.device),
        "execution": flags.describe(),
    }


def version_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two environments differ in that may change bits, with both values."""
    names = {**before.get("packages", {}), **now["packages"]}
    pairs = {
        name: (before.get("packages", {}).get(name), now["packages"].get(name)) for name in names
    }
    pairs |= {key: (before.get(key), now[key]) for key in ("python", "git", "hardware")}
    return [f"{name} {then}, now {new}" for name, (then, new) in pairs.items() if then != new]


def package_versions() -> dict[str, str]:
    """Installed versions of what changes numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def hardware(device: str) -> str:
    """The processor's or accelerator's name."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} ({bf16_units()})"


def cpu_name() -> str:
    """The CPU's model name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_revision() -> str:
    """The revision of the code, `-dirty` with uncommitted changes; `unknown` outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
