"""Vision transformers, and whatever else timm has; timm is an optional extra."""

from __future__ import annotations

import difflib
import logging
from types import ModuleType

import torch
from torch import nn

from bootstrap.errors import ConfigurationError

log = logging.getLogger(__name__)
SMALL_PX = 64  # up to this side an ImageNet stem loses most of an image


def build_vit(
    image_shape: tuple[int, int, int],
    n_classes: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
) -> nn.Module:
    """timm's VisionTransformer. ConfigurationError if patches do not tile the image."""
    timm = _import_timm()
    height, width_px, n_channels = image_shape
    if height % patch or width_px % patch:
        raise ConfigurationError(
            f"vit: images of {height}x{width_px} px are not tiled by patch={patch};"
            " choose a divisor of both sides"
        )
    return timm.models.VisionTransformer(
        img_size=(height, width_px),
        patch_size=patch,
        in_chans=n_channels,
        num_classes=n_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
    )


def build_timm(image_shape: tuple[int, int, int], n_classes: int, name: str) -> nn.Module:
    """The architecture `name` of timm with fresh weights; nothing is downloaded.

    ConfigurationError for a name that timm does not list, an image it cannot take, or dropout,
    whose draws would not be a function of the seed.
    """
    timm = _import_timm()
    names = timm.list_models()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(f"timm has no architecture {name!r}{hint}")
    height, width, n_channels = image_shape
    config = timm.get_pretrained_cfg(name)
    size = {"img_size": (height, width)} if config and config.fixed_input_size else {}
    x = torch.zeros(1, n_channels, height, width)
    try:
        model = timm.create_model(name, num_classes=n_classes, in_chans=n_channels, **size).eval()
        with torch.no_grad():
            logits, features = model(x), model.forward_features(x)
    except Exception as error:  # each architecture has checks of its own
        raise ConfigurationError(
            f"timm model {name!r} cannot take {height}x{width}x{n_channels} images: {error}"
        ) from error
    if logits.shape != (1, n_classes):
        raise ConfigurationError(f"timm model {name!r} is no classifier: {tuple(logits.shape)}")
    _refuse_dropout(model, name)
    if max(height, width) <= SMALL_PX and features.ndim == 4 and 1 in features.shape[1:]:
        log.warning(
            f"timm model {name!r} has an ImageNet stem: {height}x{width} images are 1 px at its end"
        )
    return model.train()


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise ConfigurationError(
            "models vit and timm need the package timm: pip install 'deep-bootstrap[timm]'"
        ) from None
    return timm


def _refuse_dropout(model: nn.Module, name: str) -> None:
    for layer in model.modules():
        kind = type(layer).__name__
        rates = ("p", "prob", "drop_prob") if "Drop" in kind else ("drop_rate",)
        if any(getattr(layer, rate, 0) for rate in rates):
            raise ConfigurationError(
                f"timm model {name!r} has dropout ({kind}), which no seed of a run decides;"
                " choose a model without"
            )
