"""Options that every command which computes has. No torch until they are resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bootstrap.errors import ConfigurationError

if TYPE_CHECKING:
    from bootstrap.execution import Family, Flags

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

    def resolve(self, family: Family, n_images: int) -> Flags:
        """Decide and apply the flags of a run of this many images."""
        from bootstrap.execution import resolve_flags

        flags = resolve_flags(
            self.device,
            self.precision,  # type: ignore[arg-type]
            self.compile,  # type: ignore[arg-type]
            family=family,
            n_images=n_images,
        )
        flags.apply()
        return flags
