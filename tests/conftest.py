"""What the tests share: the flags of a plain machine and one tiny toy data set."""

from pathlib import Path

import pytest
import torch

from bootstrap.execution import Flags
from generators.toy import ToySource
from generators.write import generate


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def flags() -> Flags:
    return Flags(device="cpu", precision="fp32", compiled=False, n_threads=2)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,048 stream, 512 test and 256 reference images of 8 px; for reading only."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    generate(ToySource(side=8), folder, {"test": 512, "reference": 256, "stream": 2_048})
    return folder
