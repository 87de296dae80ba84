"""Pairs with every design choice, in double precision: `choices_ranks_child.py DATA OUT`.

Plain, or by `torchrun --nproc-per-node=2`. In float32 two processes soon part for the one reason
that an activation on the other side of zero has another slope; in double precision they do not.
"""

import sys
from dataclasses import replace
from pathlib import Path

import ranks_child
import torch
from choices import CASES, RECIPE
from ranks_child import FLAGS, pair

import bootstrap.pair
from bootstrap.interventions.flooding import Flooding
from bootstrap.ranks import joined

FLOODING = Flooding(level=2.3)  # where some batches are below it, and some halves of batches

MANY = (
    *("input_noise", "label_smoothing", "dropout", "weight_noise", "l2", "label_noise", "pgd"),
    *("gradient_penalty", "sam", "forgetting_events"),
)
RECIPES = {
    **{name: replace(RECIPE, choices=(*case.beside, case.full)) for name, case in CASES.items()},
    "flooded-resnet": replace(ranks_child.RECIPE, choices=(FLOODING,)),
    "many": replace(RECIPE, choices=(*(CASES[name].full for name in MANY), FLOODING)),
}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    bootstrap.pair.write_figure = lambda run: ()  # the slowest part of a small pair
    with joined(FLAGS) as (ranks, flags):
        for name, recipe in RECIPES.items():
            stopped = pair(recipe, Path(sys.argv[1]), Path(sys.argv[2]) / name, flags, ranks)
            assert stopped is None, f"{name}: {stopped}"
