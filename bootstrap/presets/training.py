"""Figures that compare ways to train one model: 5, 6, N, learning rates, optimisers."""

from __future__ import annotations

from bootstrap.presets.architectures import MOMENTUM
from bootstrap.presets.figure import LONG, SHORT, Figure, Scale, Words, points

RESNET: dict[Scale, Words] = {
    "smoke": {"model": "preresnet18(width=4)"},
    "laptop": {"model": "preresnet18(width=16)"},
    "paper": {"model": "preresnet18"},
}
SHORT_RESNET: dict[Scale, Words] = {
    "smoke": {"model": "resnet18k(width=4)", "seeds": [0]},
    "laptop": {"model": "resnet18k(width=16)", "seeds": [0]},
    "paper": {"model": "resnet18k"},
}


def fig5_augmentation(scale: Scale) -> Figure:
    """Figure 5a: augmentation in both worlds."""
    names = {"none": "none", "crop and flip": "crop_flip"}
    if scale != "laptop":
        names |= {"flip": "crop_flip(padding_px=0)"}
    own: list[tuple[str, Words]] = [
        (label, {**RESNET[scale], "augmentation": name}) for label, name in names.items()
    ]
    return Figure(
        about="Augmentation in both worlds (after Figure 5a of the paper)",
        points=points(scale, LONG, own),
    )


def fig6_metrics(scale: Scale) -> Figure:
    """Figure 6: error, soft-error and loss of Figure 1's ResNet."""
    return Figure(
        about="Error, soft-error and loss in both worlds (after Figure 6 of the paper)",
        points=points(scale, LONG, [("ResNet", RESNET[scale])]),
        metrics=("error", "soft_error", "loss"),
    )


def n_sweep(scale: Scale) -> Figure:
    """Several N against one ideal world (paper: appendix)."""
    sizes = {
        "smoke": (32, 64, 128),
        "laptop": (250, 500, 1_000, 2_000),
        "paper": (5_000, 10_000, 25_000, 50_000),
    }[scale]
    own: list[tuple[str, Words]] = [
        (f"N = {n:,}", {**RESNET[scale], "n_samples": n}) for n in sizes
    ]
    return Figure(
        about="Several N and their ideal world (after the paper's appendix)",
        points=points(scale, LONG, own),
    )


def lr_sweep(scale: Scale) -> Figure:
    """Several learning rates of a ResNet-18."""
    rates = {"smoke": (0.1, 0.01), "laptop": (0.2, 0.05, 0.01, 0.002), "paper": (0.1, 0.01, 0.001)}
    momentum = {} if scale == "paper" else {"optimizer": MOMENTUM}
    base = {**SHORT_RESNET[scale], **(momentum or {"optimizer": "sgd"})}
    own: list[tuple[str, Words]] = [
        (f"lr {lr:g}", {**base, "optimizer.lr": lr}) for lr in rates[scale]
    ]
    return Figure(
        about="ResNet-18 at several learning rates (after the paper's appendix)",
        points=points(scale, SHORT, own),
    )


def optimizers(scale: Scale) -> Figure:
    """Optimisers of a ResNet-18 (paper: appendix)."""
    momentum = "sgd(lr=0.1, momentum=0.9)" if scale == "paper" else MOMENTUM
    names = {"SGD": "sgd(lr=0.1)", "momentum": momentum, "AdamW": "adamw(lr=0.001)"}
    own: list[tuple[str, Words]] = [
        (label, {**SHORT_RESNET[scale], "optimizer": name}) for label, name in names.items()
    ]
    return Figure(
        about="ResNet-18 by several optimisers (after the paper's appendix)",
        points=points(scale, SHORT, own),
    )
