"""Compilation, bf16 and real sizes: what the default job runs is as exact as the eager toy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_paired import content

from bootstrap.augment import CropFlip
from bootstrap.execution import Flags, has_compiler, resolve_flags
from bootstrap.forks import Control
from bootstrap.models import PreActResNet18
from bootstrap.optimizers import SGD
from bootstrap.pair import run_pair
from bootstrap.recipe import Recipe
from generators.build import build_source
from generators.toy import ToySource
from generators.write import generate

pytestmark = pytest.mark.long
WEIGHTS = Path(__file__).resolve().parent.parent / "generators" / "weights"
COMPILED = Flags(device="cpu", precision="bf16", compiled=has_compiler(), n_threads=2)
RECIPE = Recipe(
    model=PreActResNet18(width=8),
    optimizer=SGD(lr=0.05, momentum=0.9),
    augmentation=CropFlip(),
    n_steps=12,
    batch_size=32,
    n_test_curve=128,
    every_step=True,
)
N = (100, 12 * 32)  # the second never re-uses a sample


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    generate(ToySource(side=32), folder, {"test": 256, "reference": 64, "stream": 1_024})
    return folder


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    return run_pair(RECIPE, data, tmp_path_factory.mktemp("pair"), n_samples=N, flags=COMPILED)


def test_compiled_in_bf16_a_fork_equals_a_world_trained_from_step_0(data, pair, tmp_path):
    alone = Control(share_prefix=False)
    other = run_pair(RECIPE, data, tmp_path, n_samples=N, flags=COMPILED, control=alone)
    assert content(other) == content(pair)


def test_compiled_in_bf16_a_world_without_reuse_is_the_ideal_one(pair):
    found = content(pair)
    assert found[f"seed-0/real-n{N[1]}.done.json"] == found["seed-0/ideal.done.json"]


def test_compiled_in_bf16_frequent_stops_change_nothing(data, pair, tmp_path):
    often = Control(checkpoint_every_s=0.0)
    other = run_pair(RECIPE, data, tmp_path, n_samples=N, flags=COMPILED, control=often)
    assert content(other) == content(pair)


@pytest.fixture(scope="module")
def shipped():
    torch._dynamo.reset()
    flags = resolve_flags("cpu", family="denoiser")
    return build_source(
        "diffusion(weights='small-v2.safetensors', solver='euler', n_steps=4)", WEIGHTS, flags
    )


def sample(source, ids, label):
    return source.sample(ids, np.full(len(ids), label), np.zeros(len(ids), dtype=np.int64))


def test_an_image_of_the_shipped_denoiser_does_not_depend_on_its_batch(shipped):
    ids = np.arange(40)
    together, apart = sample(shipped, ids, 3), sample(shipped, ids[17:20], 3)
    np.testing.assert_array_equal(together[17:20], apart)


def test_the_shipped_denoiser_heeds_the_class(shipped):
    ids = np.arange(16)
    airplane, frog = sample(shipped, ids, 0), sample(shipped, ids, 6)
    blue_minus_green = [x[..., 2].mean() - x[..., 1].mean() for x in (airplane / 255, frog / 255)]
    assert blue_minus_green[0] > blue_minus_green[1] + 0.02  # sky against leaves
