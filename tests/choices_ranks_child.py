"""Pairs with design choices: `torchrun --nproc-per-node=2 choices_ranks_child.py DATA OUT`."""

import sys
from dataclasses import replace
from pathlib import Path

from ranks_child import FLAGS, RECIPE, pair

import bootstrap.pair
from bootstrap.interventions.adversarial import FGM
from bootstrap.interventions.dropout import Dropout
from bootstrap.interventions.flooding import Flooding
from bootstrap.interventions.forgetting import ForgettingEvents, ProbeFlips
from bootstrap.interventions.gradient_penalty import GradientPenalty
from bootstrap.interventions.label_noise import LabelNoise
from bootstrap.interventions.label_smoothing import LabelSmoothing
from bootstrap.interventions.noise import InputNoise, WeightNoise
from bootstrap.interventions.penalty import L2
from bootstrap.interventions.sam import SAM
from bootstrap.ranks import joined

CHOSEN = replace(
    RECIPE,
    choices=(
        InputNoise(),
        LabelSmoothing(),
        Flooding(level=2.2),
        Dropout(),
        WeightNoise(),
        L2(),
        LabelNoise(),
        ForgettingEvents(),
        ProbeFlips(),
    ),
)
TWICE = replace(RECIPE, choices=(FGM(), GradientPenalty(), SAM()), n_steps=8)


if __name__ == "__main__":
    bootstrap.pair.write_figure = lambda run: ()  # the slowest part of a small pair
    with joined(FLAGS) as (ranks, flags):
        for name, recipe in (("chosen", CHOSEN), ("twice", TWICE)):
            pair(recipe, Path(sys.argv[1]), Path(sys.argv[2]) / name, flags, ranks)
