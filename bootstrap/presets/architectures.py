"""Figures that compare architectures: 1, 2a, 2b, 3, 4, and widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bootstrap.presets.figure import LONG, SHORT, Figure, Scale, Words, points

MOMENTUM = "sgd(lr=0.05, momentum=0.9)"
DATA_OF_FIG3: dict[Scale, Any] = {
    "smoke": {},
    "laptop": {
        "data": Path("data/cifar10"),
        "how": "deep-bootstrap import npz FOLDER data/cifar10",
    },
    "paper": {
        "data": Path("data/dogbird"),
        "how": "deep-bootstrap import image-folder FOLDER data/dogbird --side 224",
    },
}


def fig1(scale: Scale) -> Figure:
    """Figure 1: a ResNet, an MLP and a vision transformer in both worlds."""
    own: dict[Scale, list[tuple[str, Words]]] = {
        "smoke": [
            ("ResNet", {"model": "preresnet18(width=4)"}),
            ("MLP", {"model": "mlp(width=32, depth=2)"}),
            ("ViT", {"model": "vit(width=16, depth=2, heads=2)"}),
        ],
        "laptop": [
            ("ResNet", {"model": "preresnet18(width=16)"}),
            ("MLP", {"model": "mlp(width=1024, depth=5)"}),
            (
                "ViT",
                {
                    "model": "vit(patch=8, width=192, depth=6, heads=3)",
                    "optimizer": "adamw(lr=0.001)",  # in so few steps SGD learns little
                },
            ),
        ],
        "paper": [
            ("ResNet", {"model": "preresnet18"}),
            ("MLP", {"model": "mlp(depth=5)"}),
            ("ViT", {"model": "vit", "optimizer": "sgd(lr=0.01, momentum=0.9, weight_decay=1e-4)"}),
        ],
    }
    return Figure(
        about="Three architectures from scratch in both worlds (after Figure 1 of the paper)",
        points=points(scale, LONG, own[scale]),
    )


def fig2a(scale: Scale) -> Figure:
    """Figure 2a: standard architectures at several learning rates, as a scatter."""
    models: dict[Scale, dict[str, str]] = {
        "smoke": {"MLP": "mlp(width=16, depth=2)", "VGG-11": "vgg11_bn(width=4)"},
        "laptop": {
            "MLP": "mlp(width=512)",
            "5-layer CNN": "mcnn(width=16)",
            "AlexNet": "alexnet(width=16)",
            "VGG-11": "vgg11_bn(width=16)",
            "ResNet-18": "resnet18k(width=16)",
            "DenseNet-16": "densenet(depth=16, growth=8)",
        },
        "paper": {
            "MLP 3x2048": "mlp",
            "MLP 3x128": "mlp(width=128)",
            "5-layer CNN": "mcnn",
            "AlexNet": "alexnet",
            "VGG-11": "vgg11_bn",
            "ResNet-18": "resnet18k",
            "DenseNet-40-12": "densenet40_12",
            "DenseNet-40-32": "densenet40_32",
        },
    }
    optimizers = {
        "smoke": ["sgd(lr=0.1)"],
        "laptop": [MOMENTUM, "sgd(lr=0.01, momentum=0.9)"],
        "paper": ["sgd(lr=0.1)", "sgd(lr=0.01)", "sgd(lr=0.001)"],
    }
    own: list[tuple[str, Words]] = [
        (label, {"model": model, "optimizer": optimizer})
        for label, model in models[scale].items()
        for optimizer in optimizers[scale]
    ]
    return Figure(
        about="Architectures and learning rates at convergence (after Figure 2a of the paper)",
        points=points(scale, SHORT, own),
        kind="scatter",
    )


def fig2b(scale: Scale) -> Figure:
    """Figure 2b: random convolutional nets of the DARTS space, as a scatter."""
    size = {"smoke": "cells=1, width=4", "laptop": "cells=1, width=16", "paper": ""}[scale]
    n_nets = {"smoke": 2, "laptop": 6, "paper": 500}[scale]
    optimizer = "sgd(lr=0.1)" if scale == "paper" else MOMENTUM
    rest = f", {size}" if size else ""
    words = {"optimizer": optimizer, "seeds": [0]}
    own: list[tuple[str, Words]] = [
        ("DARTS space", {"model": f"darts(seed={k}{rest})", **words}) for k in range(n_nets)
    ]
    return Figure(
        about="Random nets of the DARTS space at convergence (after Figure 2b of the paper)",
        points=points(scale, SHORT, own),
        kind="scatter",
    )


def fig3(scale: Scale) -> Figure:
    """Figure 3: a finite pool of real images, used again when it ends, as a scatter.

    The paper has hunting dogs and birds of ImageNet, N = 10,000 of 155,000, 120 passes at 224 px.
    On a laptop animals and vehicles of CIFAR-10 stand for them. At the paper's scale the batch of
    128 and the padding of crops are assumed, and BagNet is left out.
    """
    models: dict[Scale, dict[str, str]] = {
        "smoke": {"S-CONV": "sconv(width=2)", "ResNet-18, width 2": "resnet18k(width=2)"},
        "laptop": {
            "S-CONV": "sconv(width=16)",
            "AlexNet": "alexnet(width=16)",
            "VGG-11": "vgg11_bn(width=16)",
            **{f"ResNet-18, width {w}": f"resnet18k(width={w})" for w in (4, 8)},
        },
        "paper": {
            "S-CONV": "sconv",
            **{
                label: f"timm(name={name!r})"
                for label, name in {
                    "ResNet-18": "resnet18",
                    "ResNet-34": "resnet34",
                    "ResNet-50": "resnet50",
                    "ResNeXt-50": "resnext50_32x4d",
                    "DenseNet-121": "densenet121",
                    "VGG-11": "vgg11_bn",
                    "MobileNetV2": "mobilenetv2_100",
                }.items()
            },
            **{
                f"ResNet-18, width {w}": f"resnet18k(width={w}, pre_activation=False)"
                for w in (16, 32, 64)
            },
        },
    }
    groups = ((2, 3, 4, 5, 6, 7), (0, 1, 8, 9))  # animals, vehicles
    of_cifar10: Words = {"choices": [f"superclasses(groups={groups})"]}
    sizes: dict[Scale, Words] = {
        "smoke": {**of_cifar10, "batch_size": 320, "n_samples": 512},
        "laptop": {**of_cifar10, "batch_size": 128, "n_steps": 512, "n_samples": 1_000},
        "paper": {"n_samples": 10_000, "n_steps": 9_375},
    }
    optimizer = MOMENTUM if scale == "laptop" else "sgd(lr=0.01, momentum=0.9)"
    padding = {"smoke": "(padding_px=1)", "laptop": "", "paper": "(padding_px=28)"}[scale]
    own: list[tuple[str, Words]] = [
        (
            label,
            {
                "model": model,
                "optimizer": optimizer,
                "augmentation": f"crop_flip{padding}",
                "allow_reuse": True,
                **({} if scale == "paper" else {"seeds": [0]}),
                **sizes[scale],
            },
        )
        for label, model in models[scale].items()
    ]
    return Figure(
        about={
            "smoke": "Two groups of toy classes, a finite pool",
            "laptop": "Animals against vehicles of real CIFAR-10, a finite pool: an analogue of"
            " Figure 3 of the paper",
            "paper": "Dogs against birds, a finite pool (after Figure 3 of the paper)",
        }[scale],
        points=points(scale, SHORT, own),
        kind="scatter",
        **DATA_OF_FIG3[scale],
    )


def fig4(scale: Scale) -> Figure:
    """Figure 4: a convolutional net against the dense net that subsumes it."""
    width = {"smoke": 1, "laptop": 4, "paper": 32}[scale]
    optimizer: Words = {"optimizer": "sgd(lr=0.1)"} if scale == "paper" else {"seeds": [0]}
    own: list[tuple[str, Words]] = [
        ("D-CONV", {"model": f"dconv(width={width})", **optimizer}),
        ("D-FC", {"model": f"dfc(width={width})", **optimizer}),
    ]
    return Figure(
        about="A convolutional net and the dense net around it (after Figure 4 of the paper)",
        points=points(scale, LONG, own),
    )


def width_sweep(scale: Scale) -> Figure:
    """Widths of a ResNet-18 (paper: appendix)."""
    widths = {"smoke": (2, 4), "laptop": (4, 8, 16), "paper": (8, 16, 32, 64)}[scale]
    rest: Words = {} if scale == "paper" else {"optimizer": MOMENTUM, "seeds": [0]}
    own: list[tuple[str, Words]] = [
        (f"width {width}", {"model": f"resnet18k(width={width})", **rest}) for width in widths
    ]
    return Figure(
        about="ResNet-18 of several widths (after the paper's appendix)",
        points=points(scale, SHORT, own),
    )
