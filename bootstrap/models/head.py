"""The head of a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootstrap.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn


def last_linear(model: nn.Module, without: str) -> tuple[str, nn.Linear]:
    """The layer that turns features into logits, after its name in `model`.

    ConfigurationError with the words `without` if no layer is linear.
    """
    from torch.nn import Linear

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear)]
    if not layers:
        raise ConfigurationError(without)
    return layers[-1]
