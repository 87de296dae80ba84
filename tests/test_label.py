"""Labels: temperatures that make a teacher's confidence mean something."""

import numpy as np
import pytest
import torch

from generators.label import fit_temperature


def draws_of(logits, seed=0):
    """Labels drawn from the probabilities that the logits stand for."""
    p = logits.double().softmax(dim=1)
    return torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_overconfidence(temperature):
    honest = 2 * torch.from_numpy(np.random.default_rng(0).standard_normal((20_000, 5))).float()
    found = fit_temperature(temperature * honest, draws_of(honest))
    assert found == pytest.approx(temperature, rel=0.05)
