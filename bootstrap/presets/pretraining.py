"""Figures about pre-training: 5b, and a vision transformer.

Weights are made here, from the split `pretrain` of the same data set, which no world sees; the
paper's were made from ImageNet. The whole model is fine-tuned, with a head of zeros.
"""

from __future__ import annotations

from bootstrap.presets.figure import LONG, Figure, Point, Pretraining, Scale, Words, points


def starts(
    scale: Scale, words: Words, inits: dict[str, Pretraining], pick_lr: tuple[float, ...] = ()
) -> tuple[Point, ...]:
    """A point from scratch and one from each init; all try the same learning rates, if any."""
    labels: dict[str, Pretraining | None] = {"from scratch": None, **inits}
    (plain,) = points(scale, LONG, [("", words)])
    return tuple(
        Point(label=label, words=plain.words, init=init, pick_lr=pick_lr)
        for label, init in labels.items()
    )


def fig5_pretraining(scale: Scale) -> Figure:
    """Figure 5b: Image GPT from two checkpoints of its pre-training and from scratch.

    As in the paper Adam at 3e-3 with a constant rate, and at its scale N = 2,000 and Image GPT's
    small size. How long it is fine-tuned, images as they are, and the rate of pre-training are
    assumed.
    """
    model = {
        "smoke": "pixel_transformer(width=16, depth=1, heads=2, levels=2)",
        "laptop": "pixel_transformer(width=32, depth=2, heads=1, levels=4)",
        "paper": "pixel_transformer(width=512, depth=24, heads=8)",
    }[scale]
    plain: Words = {"model": model, "augmentation": "none"}
    adam: Words = {"optimizer": "adamw(lr=0.003, betas=(0.9, 0.95))", "schedule": "constant"}
    size: dict[Scale, Words] = {
        "smoke": {},
        "laptop": {
            **{"n_steps": 128, "batch_size": 32, "n_test_curve": 128},
            **{"n_samples": 128, "seeds": [0]},
        },
        "paper": {"n_samples": 2_000, "n_steps": 3_900},
    }
    n_images = {"smoke": 64, "laptop": 8_192, "paper": 1_024_000}[scale]
    n_steps = {"smoke": (2, 8), "laptop": (64, 256), "paper": (131_000, 1_000_000)}[scale]
    inits = {
        f"after {n:,} steps": Pretraining(
            method="next_pixel", n_images=n_images, words={**adam, "n_steps": n}
        )
        for n in n_steps
    }
    small = "A" if scale == "paper" else "A small"
    what = "after" if scale == "paper" else "an analogue of"
    return Figure(
        about=f"{small} pixel transformer from scratch and after steps of next-pixel pre-training"
        f" on {n_images:,} images that no world sees ({what} Figure 5b of the paper, which"
        " pre-trains on ImageNet)",
        points=starts(scale, {**plain, **adam, **size[scale]}, inits),
    )


def vit_pretraining(scale: Scale) -> Figure:
    """A vision transformer from pre-trained weights and from scratch (the paper's blog post).

    The blog post pre-trains on ImageNet at 32 px; here quarter turns are told on images of the data
    set itself. Each start has the learning rate that is best for it on the `reference` split. At
    the paper's scale model, optimiser and steps are the paper's for a transformer from scratch; the
    rates to pick from and how long it is pre-trained are assumed.
    """
    own: dict[Scale, Words] = {
        "smoke": {"model": "vit(width=16, depth=1, heads=2)", "optimizer": "adamw(lr=0.001)"},
        "laptop": {
            "model": "vit(patch=8, width=192, depth=6, heads=3)",
            "optimizer": "adamw(lr=0.001)",
            **{"n_steps": 256, "n_samples": 500, "seeds": [0, 1, 2]},
        },
        "paper": {"model": "vit", "optimizer": "sgd(lr=0.01, momentum=0.9, weight_decay=1e-4)"},
    }
    rates = {
        "smoke": (0.001, 0.003),
        "laptop": (0.0003, 0.001, 0.003),
        "paper": (0.001, 0.003, 0.01, 0.03),
    }[scale]
    n_images = {"smoke": 64, "laptop": 8_192, "paper": 1_024_000}[scale]
    n_steps = {"smoke": 4, "laptop": 1_024, "paper": 39_000}[scale]
    init = Pretraining(method="rotation", n_images=n_images, words={"n_steps": n_steps})
    return Figure(
        about="A vision transformer from scratch and from weights that tell quarter turns of"
        f" {n_images:,} images that no world sees, each at the learning rate picked for it on the"
        " reference split (an analogue of the paper's ImageNet pre-training)",
        points=starts(scale, own[scale], {"pre-trained": init}, rates),
    )
