"""Optimisers and schedules as frozen values; the learning rate is a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Optimizer(Protocol):
    """A value that builds a torch optimiser; `lr` is the base learning rate."""

    @property
    def lr(self) -> float:
        """Base learning rate, before the schedule."""
        ...

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over these parameters."""
        ...


@dataclass(frozen=True, kw_only=True)
class SGD:
    """torch.optim.SGD; `weight_decay` is lambda in lambda/2 ||w||^2, on every parameter."""

    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum <= 0:
            raise ValueError("nesterov=True needs a momentum above 0")

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """See `Optimizer`."""
        import torch

        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """torch.optim.AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.0

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """See `Optimizer`."""
        import torch

        first, second = self.betas
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=(first, second), weight_decay=self.weight_decay
        )


class Schedule(Protocol):
    """A value that scales the base learning rate."""

    def factor(self, step: int, n_steps: int) -> float:
        """The factor of the update after `step` updates, in a run of `n_steps`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same learning rate throughout."""

    def factor(self, step: int, n_steps: int) -> float:
        """See `Schedule`."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017) after a linear warm-up."""

    warmup_fraction: float = 0.0

    def factor(self, step: int, n_steps: int) -> float:
        """See `Schedule`."""
        n_warmup = int(self.warmup_fraction * n_steps)
        if step < n_warmup:
            return (step + 1) / n_warmup
        return (1 + cos(pi * (step - n_warmup) / max(n_steps - n_warmup, 1))) / 2


@dataclass(frozen=True, kw_only=True)
class Step:
    """Times `gamma` at each of `at_fractions` of the run."""

    at_fractions: tuple[float, ...] = (0.3, 0.6, 0.8)
    gamma: float = 0.2

    def factor(self, step: int, n_steps: int) -> float:
        """See `Schedule`."""
        return self.gamma ** sum(step >= fraction * n_steps for fraction in self.at_fractions)


OPTIMIZERS: dict[str, type] = {"sgd": SGD, "adamw": AdamW}
SCHEDULES: dict[str, type] = {"constant": Constant, "cosine": Cosine, "step": Step}
