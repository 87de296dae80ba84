"""Options that every command which computes has. No torch until they are resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bootstrap.errors import ConfigurationError

if TYPE_CHECKING:
    from bootstrap.execution import Flags

CHOICES = {"precision": ("auto", "fp32", "bf16"), "compile": ("auto", "on", "off")}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to run; what is left at auto is decided once and printed."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:<index> or mps"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    compile: str = "auto"
    """auto, on or off"""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigurationError(
                    f"--{name} {getattr(self, name)}: use one of {', '.join(allowed)}"
                )

    def resolve(self, n_images: int) -> Flags:
        """The flags of a job that puts this many images through a network, applied."""
        from bootstrap.execution import resolve_flags

        flags = resolve_flags(self.device, self.precision, self.compile, n_images=n_images)  # type: ignore[arg-type]
        flags.apply()
        return flags
