"""A file of weights is data, whoever wrote it: a wrong card is refused, and no code is run."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.torch import save_file
from test_paired import OWN_MODEL
from test_sample import TINY

from bootstrap.errors import ConfigurationError, DataError
from bootstrap.models import MLP, MODELS
from bootstrap.spec import parse_spec
from generators.commands.quality import QualityOptions, run_quality
from generators.commands.train_generator import TrainGeneratorOptions, run_train_generator
from generators.denoiser import build_denoiser, read_denoiser, write_denoiser
from generators.label import read_teacher, write_teacher
from generators.sample import DiffusionSpec

CARD = {
    "model": "mlp(width=4, depth=1)",
    "image_shape": (8, 8, 3),
    "n_classes": 10,
    "mean": (0.5,) * 3,
    "deviation": (0.25,) * 3,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def write(path, **card):
    write_teacher(path, MLP(width=4, depth=1).build((8, 8, 3), 10), CARD | card)


def write_metadata(path, **metadata):
    """The tensors of a tiny denoiser with whatever text beside them."""
    tensors = {k: v.contiguous() for k, v in build_denoiser(TINY, seed=0).state_dict().items()}
    save_file(tensors, path, metadata=metadata or None)


# Teachers


@pytest.fixture
def code(tmp_path):
    """The name of a model in a Python file that leaves a mark when it is imported."""
    marker, file = tmp_path / "was-run", tmp_path / "evil.py"
    file.write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n{OWN_MODEL}")
    name = f"{file}:Linear"
    parse_spec(name, MODELS, "model")
    assert marker.exists()  # it would run
    marker.unlink()
    del sys.modules[str(file)]
    yield name
    assert not marker.exists()


def test_a_teacher_that_names_code_exits_3_and_the_code_is_not_run(code, path, deep_bootstrap):
    write(path, model=code)
    at = ("--preset", "smoke", "--data", path.parent / "data")
    status, _, err = deep_bootstrap("generate", *at, "--labels", "teacher", "--teacher", path)
    assert status == 3
    assert f"{path}: not the weights of a teacher (model " in err
    assert "is code, which is not run; there are: " in err
    assert not (path.parent / "data").exists()


def test_a_model_of_another_package_is_not_imported(path, flags):
    sys.modules.pop("this", None)
    write(path, model="this:Zen")
    with pytest.raises(DataError, match="'this:Zen' is code"):
        read_teacher(path, flags)
    assert "this" not in sys.modules


def test_without_leave_to_import_a_name_of_code_is_refused(code):
    with pytest.raises(ConfigurationError, match="is code, which is not run"):
        parse_spec(code, MODELS, "model", may_import=False)


@pytest.mark.parametrize("key", CARD)
def test_a_teacher_whose_card_lacks_a_key_is_refused_with_its_name(path, flags, key):
    model = MLP(width=4, depth=1).build((8, 8, 3), 10)
    write_teacher(path, model, {k: v for k, v in CARD.items() if k != key})
    with pytest.raises(DataError, match=f"not the weights of a teacher .its card lacks '{key}'"):
        read_teacher(path, flags)


@pytest.mark.parametrize(
    "card",
    [
        {"mean": (float("nan"),) * 3},
        {"mean": (0.5,)},
        {"deviation": (0.0,) * 3},
        {"deviation": "abc"},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"temperature": "warm"},
        {"image_shape": (8,)},
        {"n_classes": "ten"},
        {"n_classes": 11},
        {"model": 7},
        {"model": "mlp(width=5)"},
        {"model": "mlp(width=open('x'))"},
    ],
    ids=str,
)
def test_a_teacher_whose_card_is_nonsense_is_refused(path, flags, card):
    write(path, **card)
    with pytest.raises(DataError, match="not the weights of a teacher"):
        read_teacher(path, flags)


@pytest.mark.parametrize("metadata", [{}, {"card": "[]"}, {"card": "{"}, {"other": "{}"}], ids=str)
def test_weights_without_a_card_are_no_teacher(path, flags, metadata):
    write_metadata(path, **metadata)
    with pytest.raises(DataError, match="not the weights of a teacher"):
        read_teacher(path, flags)


def test_a_teacher_without_its_error_cannot_judge_and_is_refused_at_once(path, flags):
    write(path)
    options = QualityOptions(data=path.parent, real=path.parent, teacher=path)
    with pytest.raises(DataError, match="its card lacks 'test_error'"):
        next(run_quality(options, flags, lambda: False))


# Denoisers


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"card": "[]"},
        {"card": "{}"},
        {"card": '{"config": 7}'},
        {"card": '{"config": {"width": 7}}'},
        {"card": '{"config": {"prediction": "anything"}}'},
        {"card": '{"config": {"image_shape": [7, 7, 3]}}'},
    ],
    ids=str,
)
def test_a_denoiser_whose_card_is_nonsense_is_refused_before_a_folder_is_made(
    path, deep_bootstrap, metadata
):
    write_metadata(path, **metadata)
    at = ("--preset", "smoke", "--data", path.parent / "data")
    source = f"diffusion(weights={str(path)!r})"
    code, _, err = deep_bootstrap("generate", *at, "--source", source)
    assert code == 3
    assert f"{path}: not the weights of a denoiser" in err
    assert not (path.parent / "data").exists()


def test_a_denoiser_of_other_tensors_than_its_card_says_is_refused(path):
    write_metadata(path, card=json.dumps({"config": asdict(TINY) | {"widths": [16, 64]}}))
    with pytest.raises(DataError, match="not the weights of a denoiser"):
        read_denoiser(path)


@pytest.mark.parametrize("sampler", [{"solver": "euler"}, 7], ids=str)
def test_a_sampler_on_a_card_that_lacks_its_steps_is_refused(path, flags, sampler):
    write_denoiser(path, build_denoiser(TINY, seed=0), {"sampler": sampler})
    with pytest.raises(DataError, match="not the weights of a denoiser"):
        DiffusionSpec(weights=str(path)).build(path.parent, flags)


def test_weights_that_do_not_say_what_they_have_seen_are_nothing_to_start_from(path, flags):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    np.savez(path.parent / "train-0.npz", X=images, Y=np.arange(32) % 10)
    write_denoiser(path, build_denoiser(TINY, seed=0), {})
    work = path.parent / "work"
    options = TrainGeneratorOptions(images=path.parent, work=work, init=path)
    with pytest.raises(DataError, match="its card lacks 'images_seen'"):
        next(run_train_generator(options, flags, lambda: False))
    assert all(path.name.startswith(".lock") for path in work.iterdir())
