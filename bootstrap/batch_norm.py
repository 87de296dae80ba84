"""Batch norm on several ranks: over the images of all of them, or of each on its own.

torch's SyncBatchNorm is for GPUs only; this one runs wherever ranks can add.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bootstrap.errors import ConfigurationError
from bootstrap.ranks import ALONE, Ranks

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GlobalBatchNorm(_BatchNorm):
    """A batch norm whose batch is that of all ranks, which have equally many images of it."""

    ranks: Ranks = ALONE

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.BatchNorm2d` in one process: (batch, channel, ...), statistics in float32."""
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        own = torch.stack(torch.var_mean(x.float(), dims, correction=0))
        variances, means = self.ranks.stack(own).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        self._note(mean, variance, n=self.ranks.n * x.numel() // x.shape[1])
        scale = torch.rsqrt(variance + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale
        shift = shift if self.bias is None else shift + self.bias
        over_channels = [-1] + [1] * (x.dim() - 2)
        return (x * scale.view(over_channels) + shift.view(over_channels)).to(x.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Let the running statistics follow; that of the variance is unbiased."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * n / (n - 1), momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any dimension: the layer that this one was has had its say when the model was built."""


def globalise_batch_norm(model: nn.Module, ranks: Ranks) -> None:
    """Let every batch norm of `model` be over all ranks, in place: parameters and names stay.

    ConfigurationError for a layer that is a batch norm of its own kind.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            if type(layer) not in KNOWN:
                raise ConfigurationError(
                    f"{name} is a {type(layer).__name__}, which cannot be had over several"
                    " processes; use --bn local"
                )
            layer.__class__ = GlobalBatchNorm  # a copy would lose who else refers to the layer
            layer.ranks = ranks  # type: ignore[assignment]


def local_statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of the layers that see the images of their own rank alone."""
    local = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and not isinstance(layer, GlobalBatchNorm)
    ]
    statistics = [s for layer in local for s in (layer.running_mean, layer.running_var)]
    return [s for s in statistics if s is not None]
