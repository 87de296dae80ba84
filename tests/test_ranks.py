"""Training on several processes: shares of a batch, and one result whatever their number."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bootstrap.errors import ConfigurationError
from bootstrap.ranks import ALONE, Ranks
from generators.denoiser import build_denoiser, read_card, read_denoiser
from generators.toy import ToySource

ROOT = Path(__file__).parents[1]
OPTIONS = [
    *("--widths", "16", "32", "--norm-groups", "8", "--n-images-seen", "96", "--batch-size", "16"),
    *("--warmup-images", "16"),
    *("--device", "cpu", "--precision", "fp32", "--compile", "off", "--threads", "1"),
]


def test_shares_are_a_partition_of_the_batch():
    rows = np.arange(12)
    shares = [rows[Ranks(rank, 3).share(12)] for rank in range(3)]
    assert [share.tolist() for share in shares] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigurationError, match="--batch-size 10 does not divide among 4"):
        Ranks(0, 4).share(10)


def test_one_process_averages_nothing():
    value = torch.ones(3)
    ALONE.average([value])
    assert value.tolist() == [1, 1, 1]


def train(launcher, images, work, *more):
    command = [
        *(sys.executable, *launcher, "-m", "bootstrap", "train-generator"),
        *("--images", str(images), "--work", str(work), *OPTIONS, *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ids, labels = np.arange(64), np.arange(64) % 10
    images = ToySource(side=8).sample(ids, labels, np.zeros_like(ids))
    np.savez(folder / "train-0.npz", X=images, Y=labels)
    result = train((), folder, folder / "alone")
    assert result.returncode == 0, result.stderr
    return folder


def weights(work):
    return read_denoiser(work / "denoiser.safetensors").state_dict()


def assert_learned_the_same(there, here):
    """What was learned, the way from the initial weights, is the same but for rounding."""
    fresh = build_denoiser(read_denoiser(there / "denoiser.safetensors").config, seed=0)
    pairs = [(weights(there)[n], weights(here)[n], w) for n, w in fresh.state_dict().items()]
    way = torch.cat([(a - start).flatten() for a, _, start in pairs]).norm()
    difference = torch.cat([(a - b).flatten() for a, b, _ in pairs]).norm()
    assert difference < 0.05 * way


@pytest.mark.long
def test_two_processes_learn_what_one_does(alone, tmp_path):
    result = train(TORCHRUN, alone, tmp_path)
    assert result.returncode == 0, result.stderr
    assert_learned_the_same(alone / "alone", tmp_path)
    assert result.stdout.count("96 images  loss") == 1  # one of them speaks


@pytest.mark.long
def test_two_processes_stop_together_and_one_goes_on(alone, tmp_path):
    result = train(TORCHRUN, alone, tmp_path, "--max-minutes", "0.00001")
    assert "run it again" in result.stderr
    assert read_card(tmp_path / "denoiser.safetensors")["images_seen"] == 16
    assert train((), alone, tmp_path).returncode == 0
    assert_learned_the_same(alone / "alone", tmp_path)
