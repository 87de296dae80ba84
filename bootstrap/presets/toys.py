"""The linear toys of the paper's appendix, which are no pairs of classifiers."""

from __future__ import annotations

from bootstrap.linear_toys import LinearToy
from bootstrap.presets.figure import Figure, Scale, Words


def linear_toys(scale: Scale) -> Figure:
    """Linear regression on a linear target and on its sign (paper: appendix, as recalled)."""
    all_sizes: dict[Scale, Words] = {
        "smoke": {"n_inputs": 50, "n_samples": 20, "n_steps": 16, "seeds": (0,)},
        "laptop": {"seeds": (0, 1, 2)},
        "paper": {"seeds": tuple(range(10))},
    }
    sizes = all_sizes[scale]
    return Figure(
        about="Linear regression on a linear target and on its sign (after the paper's appendix,"
        " as recalled)",
        toys=tuple(LinearToy(target=target, **sizes) for target in ("identity", "sign")),
    )
