"""A shard that is lost while a pair trains ends it with the shard's name, and costs no state."""

import numpy as np
import pytest
from test_paired import FLAGS, content
from tiny_pair import TINY

from bootstrap.checkpoint import checkpoint_steps
from bootstrap.errors import DataError
from bootstrap.forks import Control
from bootstrap.pair import run_pair
from bootstrap.worlds import BLOCK, STREAM_START, SeedOrder
from generators.toy import ToySource
from generators.write import generate

pytestmark = pytest.mark.usefixtures("no_figure")
N_BLOCKS = 4
STEP = BLOCK // TINY.batch_size  # the first step that needs the second block
RECIPE = TINY.from_json({**TINY.to_json(), "n_steps": STEP + 4})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A stream of which every block is a shard of its own."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("generators.missing.SHARD_N", BLOCK)
        generate(ToySource(side=8), folder, {"test": 64, "stream": N_BLOCKS * BLOCK})
    return folder


@pytest.fixture
def shard(data):
    """The shard that seed 0 reads after its first; as it was again in the end."""
    order = SeedOrder(pool_n_samples=N_BLOCKS * BLOCK, seed=0)
    index = (int(order.ids(np.array([BLOCK]))[0]) - STREAM_START) // BLOCK
    path = data / f"stream-{index:05d}.h5"
    saved = path.read_bytes()
    yield path
    path.write_bytes(saved)


def refuse_to_open(path, patch):
    """What chmod 000 does to anyone but root."""
    import h5py

    original = h5py.File

    def opened(name, *args, **kwargs):
        if name == path:
            raise PermissionError(13, "Permission denied", str(name))
        return original(name, *args, **kwargs)

    patch.setattr("h5py.File", opened)


WAYS = {
    "deleted": lambda path, patch: path.unlink(),
    "cut short": lambda path, patch: path.write_bytes(path.read_bytes()[:-1]),
    "overwritten": lambda path, patch: path.write_bytes(bytes(path.stat().st_size)),
    "unreadable": refuse_to_open,
}


def run(data, out, on_record=lambda seed, world, record: None):
    control = Control(on_record=on_record, checkpoint_every_s=0.0)
    return run_pair(RECIPE, data, out, n_samples=(48,), flags=FLAGS, control=control)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bootstrap.pair.write_figure", lambda run: ())
        return content(run(data, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("way", WAYS)
def test_a_shard_lost_in_mid_run_is_named_and_the_run_goes_on_when_it_is_back(
    data, whole, shard, tmp_path, monkeypatch, way
):
    saved = shard.read_bytes()

    def lose(seed, world, record):
        if record.step == STEP - 3 and shard.exists():
            WAYS[way](shard, patch)

    with monkeypatch.context() as patch, pytest.raises(DataError, match=shard.name) as caught:
        run(data, tmp_path, lose)
    shard.write_bytes(saved)
    assert caught.value.exit_code == 3
    (folder,) = tmp_path.iterdir()
    assert checkpoint_steps(folder / "seed-0" / "checkpoints", "trunk") == [STEP, STEP - 1]
    assert content(run(data, tmp_path)) == whole
