"""A checkpoint is whole or not there, and resuming from it is as if there had been no stop."""

import errno
import json
import logging
import os
import pathlib

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bootstrap.checkpoint import (
    RETRY_AFTER_S,
    checkpoint_steps,
    keep_latest,
    load_optimizer_tensors,
    optimizer_tensors,
    prefixed,
    read_checkpoint,
    read_latest,
    remove_checkpoint,
    without_prefix,
    write_checkpoint,
)
from bootstrap.errors import StorageError
from bootstrap.files import sha256_hex
from bootstrap.models import PreActResNet18
from bootstrap.optimizers import SGD, AdamW

TENSORS = {
    "weight": torch.tensor([1.5, -0.0, float("inf")]),
    "count": torch.tensor(7),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
}
META = {"wall_s": 1.25, "ids_hash": "ab", "n": [1, 2]}


def build(optimizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PreActResNet18(width=4).build((8, 8, 3), 10)
    model = model.to(memory_format=torch.channels_last)
    return model, optimizer.build(model.parameters())


def step(model, optimizer, number):
    at = torch.arange(8 * 3 * 8 * 8, dtype=torch.float64) + number
    x = torch.sin(at**1.5).float().reshape(8, 3, 8, 8).to(memory_format=torch.channels_last)
    cross_entropy(model(x), torch.arange(8)).backward()
    optimizer.step()
    optimizer.zero_grad()


def write(folder, *steps):
    for number in steps:
        write_checkpoint(folder, "trunk", number, TENSORS, {**META, "step": number})


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_tensors_come_back_with_every_bit_and_type(tmp_path):
    write(tmp_path, 3)
    tensors, _ = read_checkpoint(tmp_path, "trunk", 3)
    assert {name: t.dtype for name, t in tensors.items()} == {
        name: t.dtype for name, t in TENSORS.items()
    }
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_meta_comes_back(tmp_path):
    write(tmp_path, 3)
    assert read_checkpoint(tmp_path, "trunk", 3)[1] == {**META, "step": 3}


@pytest.mark.parametrize(
    "value", [SGD(momentum=0.9, nesterov=True, weight_decay=5e-4), SGD(), AdamW(weight_decay=0.1)],
    ids=repr,
)  # fmt: skip
def test_a_resumed_step_equals_one_without_a_stop(tmp_path, value):
    model, optimizer = build(value)
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    state = {**prefixed("model", model.state_dict()), **optimizer_tensors(optimizer)}
    write_checkpoint(tmp_path, "trunk", 2, state, {})
    step(model, optimizer, 2)
    step(model, optimizer, 3)

    resumed, resumed_optimizer = build(value)
    tensors, _ = read_latest(tmp_path, "trunk")
    resumed.load_state_dict(without_prefix("model", tensors))
    load_optimizer_tensors(resumed_optimizer, tensors)
    step(resumed, resumed_optimizer, 2)
    step(resumed, resumed_optimizer, 3)

    other = resumed.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())


def test_a_loaded_optimiser_does_not_share_memory_with_what_it_was_loaded_from():
    _, optimizer = build(AdamW())
    model, source = build(AdamW())
    step(model, source, 0)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(source).items()}
    load_optimizer_tensors(optimizer, tensors)
    before = optimizer_tensors(optimizer)["optimizer.0.exp_avg"].clone()
    tensors["optimizer.0.exp_avg"].add_(1)
    assert torch.equal(optimizer_tensors(optimizer)["optimizer.0.exp_avg"], before)


def test_a_prefix_is_added_and_taken_away():
    assert prefixed("ema", {"a.b": 1}) == {"ema.a.b": 1}
    assert without_prefix("ema", {"ema.a.b": 1, "model.a": 2, "emanate.a": 3}) == {"a.b": 1}


def test_no_checkpoint_is_none(tmp_path):
    assert read_latest(tmp_path, "trunk") is None


def test_the_latest_is_the_one_of_the_highest_step(tmp_path):
    write(tmp_path, 9, 100, 20)
    assert read_latest(tmp_path, "trunk")[1]["step"] == 100


def test_corrupt_tensors_fall_back_to_the_checkpoint_before(tmp_path, caplog):
    write(tmp_path, 1, 2)
    flip_byte(tmp_path / "trunk-2.safetensors", -1)
    with caplog.at_level(logging.WARNING):
        assert read_latest(tmp_path, "trunk")[1]["step"] == 1
    assert "trunk-2.json is corrupt (sha256 differs from its record)" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'{"sha256": 1}', b"\xff"])
def test_a_corrupt_record_falls_back_to_the_checkpoint_before(tmp_path, content):
    write(tmp_path, 1, 2)
    (tmp_path / "trunk-2.json").write_bytes(content)
    assert read_latest(tmp_path, "trunk")[1]["step"] == 1


def test_a_truncated_file_falls_back_to_the_checkpoint_before(tmp_path):
    write(tmp_path, 1, 2)
    path = tmp_path / "trunk-2.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert read_latest(tmp_path, "trunk")[1]["step"] == 1


def test_tensors_without_a_record_are_not_a_checkpoint(tmp_path):
    write(tmp_path, 1, 2)
    (tmp_path / "trunk-2.json").unlink()
    assert checkpoint_steps(tmp_path, "trunk") == [1]


def test_a_record_without_tensors_falls_back_to_the_checkpoint_before(tmp_path):
    write(tmp_path, 1, 2)
    (tmp_path / "trunk-2.safetensors").unlink()
    assert read_latest(tmp_path, "trunk")[1]["step"] == 1


def test_the_record_is_written_after_the_tensors(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "bootstrap.checkpoint.replace", lambda path, content: written.append(path.name)
    )
    write(tmp_path, 5)
    assert written == ["trunk-5.safetensors", "trunk-5.json"]


def test_the_record_holds_the_hash_of_the_tensors(tmp_path):
    import hashlib

    write(tmp_path, 5)
    record = json.loads((tmp_path / "trunk-5.json").read_bytes())
    body = (tmp_path / "trunk-5.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(body).hexdigest()


def test_only_the_latest_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 10)
    keep_latest(tmp_path, "trunk", n=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "trunk-10.json", "trunk-10.safetensors", "trunk-3.json", "trunk-3.safetensors",
    ]  # fmt: skip


def test_checkpoints_of_another_name_are_kept(tmp_path):
    write(tmp_path, 1)
    write_checkpoint(tmp_path, "trunk-b", 1, TENSORS, META)
    keep_latest(tmp_path, "trunk", n=0)
    assert checkpoint_steps(tmp_path, "trunk-b") == [1]


def test_removing_a_checkpoint_that_is_not_there_is_no_error(tmp_path):
    write(tmp_path, 1)
    remove_checkpoint(tmp_path, "trunk", 2)
    assert checkpoint_steps(tmp_path, "trunk") == [1]


# A disk that fails


def failing(monkeypatch, n_failures):
    """Let the first syncs fail, as a full disk does; returns the pauses that were made."""
    fsync, left, pauses = os.fsync, [n_failures], []

    def sync(handle):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


def test_a_disk_that_fails_for_a_while_is_tried_again(tmp_path, monkeypatch, caplog):
    pauses = failing(monkeypatch, len(RETRY_AFTER_S))
    write(tmp_path, 3)
    assert tuple(pauses) == RETRY_AFTER_S
    assert caplog.text.count("errno 28") == len(RETRY_AFTER_S)
    assert read_latest(tmp_path, "trunk")[1]["step"] == 3


def test_a_disk_that_stays_full_ends_with_exit_75_and_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    write(tmp_path, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    failing(monkeypatch, 1_000)
    with pytest.raises(StorageError, match=r"trunk-6\.safetensors: cannot be written") as caught:
        write(tmp_path, 6)
    assert caught.value.exit_code == 75
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert read_latest(tmp_path, "trunk")[1]["step"] == 3


# A pickle where tensors should be


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (pathlib.Path.touch, (self.marker,))


@pytest.fixture
def pickled(tmp_path):
    """A file as torch.save writes it, that runs code when it is unpickled, and what that makes."""
    marker = tmp_path / "was-run"
    torch.save({"weight": Payload(marker)}, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()  # it would run
    marker.unlink()
    yield tmp_path / "evil.pt"
    assert not marker.exists()


def test_a_pickle_is_no_checkpoint_and_is_not_run(pickled, caplog):
    write(pickled.parent, 3, 6)
    body = pickled.read_bytes()
    (pickled.parent / "trunk-6.safetensors").write_bytes(body)
    record = {"sha256": sha256_hex(body), "step": 6, "meta": {"step": 6}}
    (pickled.parent / "trunk-6.json").write_text(json.dumps(record))
    assert read_latest(pickled.parent, "trunk")[1]["step"] == 3
    assert "is corrupt" in caplog.text


def test_a_pickle_is_no_denoiser_and_is_not_run(pickled, deep_bootstrap):
    at = ("--preset", "smoke", "--data", pickled.parent / "data")
    source = f"diffusion(weights={str(pickled)!r})"
    code, _, err = deep_bootstrap("generate", *at, "--source", source)
    assert code == 3
    assert "evil.pt: not the weights of a denoiser" in err


def test_a_pickle_is_nothing_to_start_from_and_is_not_run(pickled, deep_bootstrap):
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    np.savez(pickled.parent / "train-0.npz", X=images, Y=np.arange(32) % 10)
    at = ("--images", pickled.parent, "--work", pickled.parent / "work")
    code, _, err = deep_bootstrap("train-generator", *at, "--init", pickled)
    assert code == 3
    assert "evil.pt: not the weights of a denoiser" in err
    assert all(path.name.startswith(".lock") for path in (pickled.parent / "work").iterdir())


def test_a_pickle_is_no_teacher_and_is_not_run(pickled, deep_bootstrap):
    at = ("--preset", "smoke", "--data", pickled.parent / "data")
    code, _, err = deep_bootstrap("generate", *at, "--labels", "teacher", "--teacher", pickled)
    assert code == 3
    assert "evil.pt: not the weights of a teacher" in err
