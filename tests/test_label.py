"""Labels: temperatures that make a teacher's confidence mean something."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bootstrap.models.mlp import build_mlp
from generators.label import fit_temperature, read_teacher, write_teacher


def draws_of(logits, seed=0):
    """Labels drawn from the probabilities that the logits stand for."""
    p = logits.double().softmax(dim=1)
    return torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_overconfidence(temperature):
    honest = 2 * torch.from_numpy(np.random.default_rng(0).standard_normal((20_000, 5))).float()
    found = fit_temperature(temperature * honest, draws_of(honest))
    assert found == pytest.approx(temperature, rel=0.05)


def test_a_teacher_travels_as_its_file(flags, tmp_path, monkeypatch):
    card = {
        "model": "mlp(width=4, depth=1, batch_norm=False)",
        "image_shape": (8, 8, 3),
        "n_classes": 5,
        "mean": (0.5,) * 3,
        "deviation": (0.25,) * 3,
    }
    model = build_mlp((8, 8, 3), 5, width=4, depth=1, batch_norm=False)
    write_teacher(tmp_path / "teacher.safetensors", model, card)
    monkeypatch.chdir(tmp_path)
    teacher = read_teacher(Path("teacher.safetensors"), flags)
    parcel = pickle.dumps(teacher)
    assert len(parcel) < 1_000
    monkeypatch.chdir("/")
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    expected = teacher.probabilities(images)
    np.testing.assert_array_equal(pickle.loads(parcel).probabilities(images), expected)
