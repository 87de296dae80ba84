"""Design choices around a compiled model are what they are around an eager one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from choices import RECIPE, few_steps
from test_paired import FLAGS

from bootstrap.execution import has_compiler
from bootstrap.interventions.adversarial import FGM
from bootstrap.interventions.dropout import Dropout
from bootstrap.interventions.flooding import Flooding
from bootstrap.interventions.noise import InputNoise, WeightNoise
from bootstrap.interventions.penalty import L2
from bootstrap.interventions.sam import SAM

pytestmark = pytest.mark.long
CHOICES = (
    InputNoise(),
    Dropout(),
    WeightNoise(scale=0.1),
    FGM(),
    Flooding(level=2.0),
    L2(),
    SAM(rho=0.2),
)


def test_a_compiled_model_learns_with_choices_what_an_eager_one_does(toy_data):
    torch._dynamo.reset()
    found, known = (
        few_steps(toy_data, *CHOICES, recipe=replace(RECIPE, n_steps=3), flags=flags)[1]
        for flags in (replace(FLAGS, compiled=has_compiler()), FLAGS)
    )
    for key in ("batch_loss", "test_loss"):
        losses = [[row[key] for row in rows if key in row] for rows in (found, known)]
        np.testing.assert_allclose(*losses, rtol=2e-3)
