"""Workers on Ray make the bytes that one process makes, whoever dies meanwhile."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from test_sample import TINY
from test_write import all_bytes

from bootstrap.errors import ConfigurationError, Interrupted, NumericError
from bootstrap.execution import Flags
from generators.cluster import RayWorkers, Worker, as_built, capacity, refuse_other_node
from generators.denoiser import build_denoiser, write_denoiser
from generators.sample import DiffusionSource, SamplerConfig
from generators.toy import ToySource
from generators.write import Job, Labelling, generate

FLAGS = Flags(device="cpu", precision="fp32", compiled=False, n_threads=1)
GPU = Flags(device="cuda:0", precision="bf16", compiled=True, n_threads=1)
COMMAND = "--preset smoke --source toy(side=8) --n 65536"
SIZES = {"test": 300, "reference": 200, "stream": 4_096}
HERE = {"weights_sha256": "w", "hardware": "A100", "torch": "2.15"}


class TrappedToy(ToySource):
    """Toy images; the first worker to make one (on the node $TRAP/node, if there is such a file)
    hangs at $TRAP_PHASE until it is killed, the others wait until it does.
    """

    is_caught: ClassVar = False  # in this process

    def sample(self, ids, labels, attempts):
        trap = Path(os.environ["TRAP"])
        if is_victim(trap):
            if os.environ["TRAP_PHASE"] == "sampling":
                hang(trap)
            TrappedToy.is_caught, os.fsync = True, lambda handle: hang(trap)
        while not (TrappedToy.is_caught or (trap / "pid").exists()):
            time.sleep(0.01)
        return super().sample(ids, labels, attempts)


def is_victim(trap):
    import ray

    node = trap / "node"
    if node.exists() and node.read_text() != ray.get_runtime_context().get_node_id():
        return False
    try:
        (trap / "taken").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def hang(trap):
    """Say who hangs, then do."""
    (trap / "pid.part").write_text(str(os.getpid()))
    os.rename(trap / "pid.part", trap / "pid")
    time.sleep(600)


class BlackToy(ToySource):
    def sample(self, ids, labels, attempts):
        return 0 * super().sample(ids, labels, attempts)


@contextmanager
def killing(trap, kill):
    """Meanwhile, `kill` the process that is caught in the trap; the files it was writing."""

    def wait_and_kill():
        while not (trap / "pid").exists():
            time.sleep(0.02)
        pid = int((trap / "pid").read_text())
        half_written.extend(path.name for path in trap.glob(f"toy/*.h5.tmp-{pid}-*"))
        kill(pid)

    half_written: list[str] = []
    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    yield half_written
    assert not thread.is_alive()  # it was killed


def two_workers(**options):
    return RayWorkers(flags=FLAGS, n_workers=2, **options).make_all


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("generators.missing.SHARD_N", 1_024)


@pytest.fixture(autouse=True)
def workers_import_this_file(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path))
    monkeypatch.setenv("TRAP_PHASE", "sampling")
    return tmp_path


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("generators.missing.SHARD_N", 1_024)
        generate(ToySource(side=8), folder, SIZES)
    return all_bytes(folder)


def run_command(folder):
    words = f"generate {COMMAND} --data {folder}"
    subprocess.run([sys.executable, "-m", "bootstrap", *words.split()], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_command(folder)
    return all_bytes(folder)


@pytest.mark.long
def test_two_workers_make_the_bytes_of_one_process(in_one_process, tmp_path):
    finished = []
    make_all = two_workers()
    generate(ToySource(side=8), tmp_path, SIZES, make_all=make_all, on_images=finished.append)
    assert all_bytes(tmp_path) == in_one_process
    assert sorted(finished) == [200, 300, 1_024, 1_024, 1_024, 1_024]


@pytest.mark.long
def test_two_workers_draw_from_a_denoiser_as_one_process_does(tmp_path):
    write_denoiser(tmp_path / "tiny.safetensors", build_denoiser(TINY, seed=0), {})
    config, sizes = SamplerConfig(n_steps=2), {"reference": 200, "stream": 2_048}
    source = DiffusionSource(path=tmp_path / "tiny.safetensors", config=config, flags=FLAGS)
    before = torch.get_num_threads()
    FLAGS.apply()
    generate(source, tmp_path / "one", sizes)
    torch.set_num_threads(before)
    generate(source, tmp_path / "two", sizes, make_all=two_workers())
    assert all_bytes(tmp_path / "two") == all_bytes(tmp_path / "one")


@pytest.mark.long
@pytest.mark.parametrize("phase", ["sampling", "in mid file"])
def test_a_killed_worker_changes_no_byte(phase, in_one_process, trap, monkeypatch):
    monkeypatch.setenv("TRAP_PHASE", phase)
    with killing(trap, lambda pid: os.kill(pid, signal.SIGKILL)) as half_written:
        generate(TrappedToy(side=8), trap / "toy", SIZES, make_all=two_workers())
    assert len(half_written) == (phase == "in mid file")
    assert all_bytes(trap / "toy") == in_one_process


@pytest.mark.long
def test_a_lost_node_changes_no_byte(in_one_process, trap):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        (trap / "node").write_text(node.node_id)
        workers = RayWorkers(flags=FLAGS, address=cluster.address)
        with killing(trap, lambda pid: cluster.remove_node(node, allow_graceful=False)):
            generate(TrappedToy(side=8), trap / "toy", SIZES, make_all=workers.make_all)
    finally:
        cluster.shutdown()
    assert all_bytes(trap / "toy") == in_one_process


@pytest.mark.long
def test_workers_extend_what_one_process_began(in_one_process, tmp_path):
    generate(ToySource(side=8), tmp_path, {**SIZES, "stream": 1_024})
    before = {k: v for k, v in all_bytes(tmp_path).items() if k != "manifest.json"}
    made = []
    generate(ToySource(side=8), tmp_path, SIZES, make_all=two_workers(), on_images=made.append)
    assert sum(made) == 3 * 1_024
    assert before.items() <= all_bytes(tmp_path).items()
    assert all_bytes(tmp_path) == in_one_process


@pytest.mark.long
def test_stopped_workers_finish_their_shards_and_the_rest_is_made_later(in_one_process, tmp_path):
    made = []
    with pytest.raises(Interrupted, match="of 6 shards"):
        generate(
            ToySource(side=8),
            tmp_path,
            SIZES,
            make_all=two_workers(),
            on_images=made.append,
            is_interrupted=lambda: len(made) > 0,
        )
    assert 1 <= len(made) <= 3
    assert len(list(tmp_path.glob("*.h5"))) == len(made)
    generate(ToySource(side=8), tmp_path, SIZES)
    assert all_bytes(tmp_path) == in_one_process


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -9)]
)
def test_a_command_that_a_signal_ends_goes_on_in_one_process(number, code, whole, tmp_path):
    words = f"generate {COMMAND} --data {tmp_path / 'toy'} --ray local --threads 1"
    with subprocess.Popen(
        [sys.executable, "-m", "bootstrap", *words.split()], start_new_session=True
    ) as command:
        while not list(tmp_path.glob("toy/stream-*.json")):
            time.sleep(0.01)
        # the terminal's ctrl-c goes to the whole group
        (os.killpg if number == signal.SIGINT else os.kill)(command.pid, number)
    assert command.returncode == code
    assert not (tmp_path / "toy" / "manifest.json").exists()
    run_command(tmp_path / "toy")
    assert all_bytes(tmp_path / "toy") == whole


@pytest.mark.long
def test_an_error_of_a_worker_is_raised_as_it_is_and_ray_leaves_no_handler(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(NumericError, match=r"^ids .* images of a single colour"):
        generate(BlackToy(side=8), tmp_path, SIZES, make_all=two_workers())
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.glob("*.h5"))


def test_a_node_with_another_device_is_refused_unless_devices_may_differ():
    there = {**HERE, "hardware": "H100"}
    with pytest.raises(ConfigurationError, match=r"n7 .*'H100' there.* pass --allow-mixed-devices"):
        refuse_other_node(("n7", there), HERE, allow_mixed_devices=False)
    refuse_other_node(("n7", there), HERE, allow_mixed_devices=True)


@pytest.mark.parametrize("key", ["torch", "weights_sha256"])
def test_nodes_with_other_versions_or_weights_are_refused_whatever_is_allowed(key):
    with pytest.raises(ConfigurationError, match=f"{key}: 'other' there.* every node$"):
        refuse_other_node(("n7", {**HERE, key: "other"}), HERE, allow_mixed_devices=True)


def test_a_node_that_does_not_see_the_folder_is_refused(tmp_path):
    job = Job(source=ToySource(), labelling=Labelling(), folder=tmp_path / "not mounted")
    with pytest.raises(ConfigurationError, match=r"does not see .*not mounted"):
        Worker().start(job, FLAGS)


def test_a_source_travels_without_the_network_that_it_has_read(tmp_path):
    write_denoiser(tmp_path / "tiny.safetensors", build_denoiser(TINY, seed=0), {})
    config = SamplerConfig(n_steps=1)
    source = DiffusionSource(path=tmp_path / "tiny.safetensors", config=config, flags=FLAGS)
    assert source.image_shape == as_built(source).image_shape == (8, 8, 3)
    assert len(pickle.dumps(as_built(source))) < 1_000 < len(pickle.dumps(source))


def test_a_worker_takes_a_gpu_or_as_many_cores_as_it_has_threads():
    assert RayWorkers(flags=GPU).needs == {"GPU": 1}
    assert RayWorkers(flags=Flags(**{**vars(FLAGS), "n_threads": 8})).needs == {"CPU": 8}


def test_a_cluster_holds_as_many_workers_as_its_live_nodes_together():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 12.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 16.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert capacity(nodes, {"GPU": 1}) == 4
    assert capacity(nodes, {"CPU": 8}) == 3
    with pytest.raises(ConfigurationError, match="no node has 1 GPU for a worker"):
        RayWorkers(flags=GPU).n_at_once(nodes[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_workers": 0}, "--workers 0: give at least one"),
        ({"flags": Flags(**{**vars(GPU), "device": "cuda:1"})}, "use --device cuda$"),
    ],
    ids=["no workers", "a device by index"],
)
def test_workers_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        RayWorkers(**{"flags": FLAGS, **options})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_an_address_where_nothing_listens_is_refused_at_once(address, tmp_path):
    make_all = two_workers(address=address)
    with pytest.raises(ConfigurationError, match="no Ray cluster answers there"):
        generate(ToySource(side=8), tmp_path, SIZES, make_all=make_all)


def test_without_ray_the_error_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'deep-bootstrap\[cluster\]'"):
        RayWorkers(flags=FLAGS)


def test_usage_reports_are_off(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    RayWorkers(flags=FLAGS)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_data_set_of_several_devices_names_them_all(tmp_path, monkeypatch):
    toy = ToySource(side=8)
    for device, stream in (("H100", 1_024), ("A100", 2_048)):
        provenance = {"source": "toy", "hardware": device}
        monkeypatch.setattr(ToySource, "provenance", lambda self, p=provenance: p)
        manifest = generate(toy, tmp_path, {"stream": stream}, allow_mixed_devices=True)
    assert [shard.provenance["hardware"] for shard in manifest.shards] == ["H100", "A100"]
    assert manifest.generator["hardware"] == "A100 + H100"
    with pytest.raises(ConfigurationError, match="'H100' there, 'A100' asked"):
        generate(toy, tmp_path, {"stream": 3_072})
