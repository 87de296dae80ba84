"""How hard a sample is for a model: EL2N, GraNd, GraNd of the last layer (Paul et al. 2021).

All in eval mode, so that samples of a batch do not touch; x (n, channel, height, width) is
normalised, labels are (n,), scores (n,) float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from bootstrap.errors import ConfigurationError
from bootstrap.models.head import last_linear

Score = Callable[[nn.Module, Tensor, Tensor], Float[Tensor, " n"]]
CHUNK = 16  # samples whose whole gradients are held at once


@torch.no_grad()
def el2n(model: nn.Module, x: Tensor, labels: Tensor) -> Float[Tensor, " n"]:
    """||softmax f(x) - onehot y||."""
    return residuals(model(x), labels).norm(dim=1)


@torch.no_grad()
def grand_last_layer(model: nn.Module, x: Tensor, labels: Tensor) -> Float[Tensor, " n"]:
    """The norm of the gradient of cross-entropy to the last linear layer: ||p - y|| ||(h, 1)||.

    Exact for that layer, without a backward pass; h is what the layer is given.
    """
    without = "grand_last_layer: the model has no linear layer; use el2n"
    (_, head), given = last_linear(model, without), list[Tensor]()
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        left = residuals(model(x), labels)
    finally:
        hook.remove()
    h = given[-1].double()
    if h.dim() != 2:
        raise ConfigurationError(
            "grand_last_layer: the last layer of this model is applied at several places; use el2n"
        )
    bias = 0 if head.bias is None else 1
    return left.norm(dim=1) * (h.square().sum(dim=1) + bias).sqrt()


def grand(model: nn.Module, x: Tensor, labels: Tensor) -> Float[Tensor, " n"]:
    """The norm of the gradient of each sample's cross-entropy to all weights."""
    weights = {k: v.detach() for k, v in model.named_parameters() if v.requires_grad}
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, (weights, buffers), (image[None],))
        return cross_entropy(logits.float(), label[None])

    slopes_of = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    found = []
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        slopes = slopes_of(weights, x[rows], labels[rows]).values()
        found.append(sum(slope.double().flatten(1).square().sum(dim=1) for slope in slopes))
    return torch.cat(found).sqrt()


def residuals(logits: Tensor, labels: Tensor) -> Float[Tensor, "n classes"]:
    """softmax f(x) - onehot y: the gradient of cross-entropy to the logits."""
    return logits.double().softmax(dim=1) - one_hot(labels, logits.shape[1])


SCORES: dict[str, Score] = {
    "el2n": el2n,
    "grand": grand,
    "grand_last_layer": grand_last_layer,
}
