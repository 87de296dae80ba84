"""Every figure that can be reproduced, by name."""

from __future__ import annotations

from collections.abc import Callable

from bootstrap.errors import ConfigurationError
from bootstrap.presets.architectures import fig1, fig2a, fig2b, fig3, fig4, width_sweep
from bootstrap.presets.figure import SCALES, Figure, Scale
from bootstrap.presets.pretraining import fig5_pretraining, vit_pretraining
from bootstrap.presets.toys import linear_toys
from bootstrap.presets.training import (
    fig5_augmentation,
    fig6_metrics,
    label_noise,
    loss_mse,
    lr_sweep,
    n_sweep,
    optimizers,
)
from bootstrap.spec import did_you_mean

FIGURES: dict[str, Callable[[Scale], Figure]] = {
    "fig1": fig1,
    "fig2a": fig2a,
    "fig2b": fig2b,
    "fig3": fig3,
    "fig4": fig4,
    "fig5-augmentation": fig5_augmentation,
    "fig5-pretraining": fig5_pretraining,
    "vit-pretraining": vit_pretraining,
    "fig6-metrics": fig6_metrics,
    "n-sweep": n_sweep,
    "lr-sweep": lr_sweep,
    "width-sweep": width_sweep,
    "optimizers": optimizers,
    "loss-mse": loss_mse,
    "label-noise": label_noise,
    "linear-toys": linear_toys,
}


def build_figure(name: str, scale: str) -> Figure:
    """The figure of this name at a scale; ConfigurationError with a suggestion if there is none."""
    if name not in FIGURES:
        raise ConfigurationError(
            f"unknown figure {name!r}{did_you_mean(name, FIGURES)}; there are: {', '.join(FIGURES)}"
        )
    for known in SCALES:
        if scale == known:
            return FIGURES[name](known)
    raise ConfigurationError(f"--scale {scale}: use one of {', '.join(SCALES)}")
