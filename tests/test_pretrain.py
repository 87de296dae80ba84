"""Weights for `compare --init`, from data that no world sees: tasks, resumption, provenance."""

import json
import math
from contextlib import suppress
from dataclasses import replace
from glob import glob
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from test_walks import commands_of
from tiny_pair import PLAIN, TINY

from bootstrap.errors import ConfigurationError, Interrupted, NotEnoughData, NumericError
from bootstrap.execution import Flags
from bootstrap.locks import locked
from bootstrap.models import MLP, PixelTransformer, ViT
from bootstrap.optimizers import SGD, AdamW, Constant
from bootstrap.plan import data_hash
from bootstrap.pool import Pool
from bootstrap.pretexts import MaskedPatches, NextPixel, Rotation, Supervised
from bootstrap.pretrained import head_names, read_pretrained
from bootstrap.pretraining import Corpus, Job, Watch, build_state, pretrain
from bootstrap.shards import read_manifest
from generators.toy import ToySource
from generators.write import generate

FLAGS = Flags(device="cpu", precision="fp32", compiled=False, n_threads=1)
SIZES = {"test": 64, "reference": 64, "stream": 1_024}
PERCEPTRON = replace(TINY, schedule=Constant())
VIT = replace(TINY, model=ViT(patch=2, width=16, depth=1, heads=2), optimizer=AdamW(lr=0.01))
PIXELS = replace(VIT, model=PixelTransformer(width=16, depth=1, heads=2, levels=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    generate(ToySource(side=8), folder, {"pretrain": 300, **SIZES})
    return folder


@pytest.fixture(scope="module")
def clear(tmp_path_factory):
    """Two images and a little noise: what a pixel is says much about others."""
    folder = tmp_path_factory.mktemp("clear") / "toy"
    generate(
        ToySource(side=8, noise=0.02, n_classes=2, n_modes=1), folder, {"pretrain": 300, **SIZES}
    )
    return folder


def images(n=6, side=8):
    at = torch.arange(n * 3 * side * side, dtype=torch.float64)
    return torch.sin(at**1.5).float().reshape(n, 3, side, side)


def job(recipe, method, data, **options):
    corpus = Corpus(data=data, **options.pop("corpus", {}))
    return Job(recipe=recipe, method=method, corpus=corpus, flags=FLAGS, **options)


def make(recipe, method, data, path, watch=Watch(), **options):
    return pretrain(job(recipe, method, data, **options), path, watch)


def stop_before(n_steps, steps):
    """Asks for a stop once a step is the last before so many; steps are noted."""
    return Watch(on_step=steps.append, is_interrupted=lambda: steps[-1].step + 1 == n_steps)


# ---------------------------------------------------------------- the split


def test_the_split_has_ids_of_its_own_and_adding_it_changes_nothing_else(tmp_path):
    source, folder = ToySource(side=8), tmp_path / "toy"
    before = generate(source, folder, SIZES)
    files = {path: path.read_bytes() for path in folder.glob("*.h5")}
    after = generate(source, folder, {"pretrain": 300, **SIZES})
    assert {path: path.read_bytes() for path in files} == files
    assert data_hash(after, 1_024) == data_hash(before, 1_024)
    assert Pool(folder, "pretrain").first(300).ids.tolist() == list(
        range(5 * 10**8, 5 * 10**8 + 300)
    )


def test_generate_makes_the_split_when_asked(deep_bootstrap, tmp_path):
    words = ("generate", "--preset", "smoke", "--n", "1024", "--data", tmp_path / "toy", *PLAIN)
    assert deep_bootstrap(*words)[0] == 0
    assert read_manifest(tmp_path / "toy").n("pretrain") == 0
    for said in ("300 images in", "nothing to do"):
        code, out, err = deep_bootstrap(*words, "--n-pretrain", "300")
        assert (code, said in out) == (0, True), err
    assert read_manifest(tmp_path / "toy").n("pretrain") == 300


# ---------------------------------------------------------------- the images


def test_a_corpus_of_some_classes_holds_all_their_images_with_labels_from_0(data):
    corpus, pool = Corpus(data=data, classes=(7, 2)), Pool(data, "pretrain")
    every, found = pool.first(300), corpus.relabelled(pool.rows(corpus.ids(pool)))
    np.testing.assert_array_equal(found.ids, every.ids[np.isin(every.labels, (2, 7))])
    there = every.labels[np.isin(every.labels, (2, 7))]
    np.testing.assert_array_equal(found.labels, (there == 7).astype(np.int64))
    assert corpus.n_classes == 2


def test_a_corpus_of_n_samples_holds_the_first(data):
    pool = Pool(data, "pretrain")
    found = Corpus(data=data, n_samples=10).ids(pool)
    np.testing.assert_array_equal(found, pool.first(10).ids)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"n_samples": 301}, NotEnoughData, r"holds 300 such samples, not 301.*--n-pretrain"),
        ({"split": "test"}, ConfigurationError, "--split test: use pretrain or stream"),
        ({"classes": (10,)}, ConfigurationError, "--classes 10: toy-8px has the classes 0 to 9"),
    ],
)
def test_a_corpus_that_there_is_not_is_refused(data, tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        make(TINY, Rotation(), data, tmp_path / "w.safetensors", corpus=options)


def test_a_data_set_without_the_split_is_refused_with_the_command_that_makes_it(toy_data, tmp_path):
    with pytest.raises(NotEnoughData, match=r"no split pretrain; `deep-bootstrap generate --n-pre"):
        make(TINY, Rotation(), toy_data, tmp_path / "w.safetensors")


# ---------------------------------------------------------------- the tasks


def test_a_rotated_image_is_the_image_after_so_many_quarter_turns():
    x = images(64)
    turned, turns = Rotation().batch(x, torch.zeros(64), seed=3, step=5)
    back = [torch.rot90(t, -int(k), (1, 2)) for t, k in zip(turned, turns, strict=True)]
    assert torch.equal(torch.stack(back), x)
    assert {*turns.tolist()} == {0, 1, 2, 3}
    assert not torch.equal(turns, Rotation().batch(x, torch.zeros(64), seed=3, step=6)[1])


def test_a_vision_transformer_is_not_shown_the_patches_that_it_paints():
    objective = MaskedPatches(fraction=0.6).build(VIT.model, (8, 8, 3), 10)
    x, draws = MaskedPatches().batch(images(), torch.zeros(6), seed=0, step=0)
    shown = []
    objective.model.patch_embed.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    hidden = objective.hidden(draws)
    assert hidden.shape == (6, 4, 4)
    assert hidden.sum(dim=(1, 2)).tolist() == [10] * 6  # 0.6 of 16
    objective(x, draws)
    rows = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(x)
    assert not shown[0][rows].any()
    assert torch.equal(shown[0][~rows], x[~rows])


def test_the_loss_of_painting_is_over_hidden_patches_only():
    objective = MaskedPatches(fraction=0.5).build(VIT.model, (8, 8, 3), 10)
    torch.nn.init.zeros_(objective.top.weight)
    torch.nn.init.zeros_(objective.top.bias)
    x, draws = MaskedPatches().batch(images(), torch.zeros(6), seed=0, step=0)
    rows = objective.hidden(draws).repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = (x**2)[rows[:, None].expand_as(x)].mean()
    torch.testing.assert_close(objective(x, draws)[0], expected)


def test_patches_are_the_pixels_of_each_square():
    objective = MaskedPatches().build(VIT.model, (8, 8, 3), 10)
    x = images(2)
    assert torch.equal(objective.patches(x)[1, 6], x[1, :, 2:4, 4:6].flatten())  # row 1, column 2


def test_the_next_pixel_is_predicted_from_those_before_it_only():
    model = NextPixel().build(PIXELS.model, (8, 8, 3), 10).model.eval()
    colours = model[0](images(1))
    other = colours.clone()
    other[0, 20] = (other[0, 20] + 1) % 8
    one, two = (model[1:-2](c)[0] for c in (colours, other))
    torch.testing.assert_close(one[:21], two[:21])  # 20 is what output 20 is to say
    assert (one[21:] != two[21:]).any(dim=1).all()


@pytest.mark.parametrize(
    ("recipe", "method", "start", "end"),
    [
        (PERCEPTRON, Supervised(), math.log(2), 0.2),
        (PERCEPTRON, Rotation(), math.log(4), 0.4),
        (VIT, MaskedPatches(), 1.2, 0.7),
        (PIXELS, NextPixel(), math.log(8), 1.4),
    ],
    ids=["supervised", "rotation", "masked patches", "next pixel"],
)
def test_every_task_is_learnt(clear, tmp_path, recipe, method, start, end):
    steps = []
    path = tmp_path / "w.safetensors"
    recipe = replace(recipe, n_steps=80, batch_size=32)
    make(recipe, method, clear, path, watch=Watch(on_step=steps.append))
    assert steps[0].loss == pytest.approx(start, rel=0.35)
    assert np.mean([step.loss for step in steps[-10:]]) < end
    assert [step.step for step in steps] == list(range(80))


@pytest.mark.parametrize(
    ("recipe", "method", "said"),
    [
        (TINY, NextPixel(), "next_pixel is for pixel_transformer; use rotation"),
        (TINY, MaskedPatches(), "masked_patches is for vision transformers"),
    ],
)
def test_a_model_that_cannot_do_a_task_is_refused(data, tmp_path, recipe, method, said):
    with pytest.raises(ConfigurationError, match=said):
        make(recipe, method, data, tmp_path / "w.safetensors")


def test_images_that_are_not_square_are_not_rotated():
    with pytest.raises(ConfigurationError, match="square images, not 8x4"):
        Rotation().build(MLP(width=8, depth=1), (8, 4, 3), 10)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_all_or_no_patches_cannot_be_hidden(fraction):
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        MaskedPatches(fraction=fraction)


# ---------------------------------------------------------------- exactness


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Finished weights, for reading only."""
    path = tmp_path_factory.mktemp("made") / "w.safetensors"
    return make(PERCEPTRON, Rotation(), data, path)


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(data, made, tmp_path):
    again = make(PERCEPTRON, Rotation(), data, tmp_path / "again.safetensors")
    other = make(PERCEPTRON, Rotation(), data, tmp_path / "other.safetensors", seed=1)
    assert again.read_bytes() == made.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("n_steps", [1, 7])
def test_what_was_stopped_goes_on_to_the_same_bytes(data, made, tmp_path, n_steps):
    steps, path = [], tmp_path / "w.safetensors"
    stop = stop_before(n_steps, steps)
    with pytest.raises(Interrupted, match=f"stopped at step {n_steps}; run it again"):
        make(PERCEPTRON, Rotation(), data, path, watch=stop)
    assert not path.exists()
    make(PERCEPTRON, Rotation(), data, path, watch=Watch(on_step=steps.append))
    assert [step.step for step in steps] == list(range(12))
    assert path.read_bytes() == made.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.json", "w.safetensors"]


def test_what_was_stopped_in_another_way_is_not_gone_on_with(data, made, tmp_path):
    steps, path = [], tmp_path / "w.safetensors"
    stop = stop_before(3, steps)
    with pytest.raises(Interrupted):
        make(PERCEPTRON, Rotation(), data, path, seed=1, watch=stop)
    make(PERCEPTRON, Rotation(), data, path)
    assert path.read_bytes() == made.read_bytes()


def test_the_states_of_another_job_do_not_stand_in_for_ones_own(data, made, tmp_path):
    path = tmp_path / "w.safetensors"
    for seed, n_steps in ((1, 9), (1, 10), (0, 3), (0, 12)):  # later states of seed 1 come first
        steps = []
        with suppress(Interrupted):
            watch = stop_before(n_steps, steps)
            make(PERCEPTRON, Rotation(), data, path, seed=seed, watch=watch)
    assert [step.step for step in steps] == list(range(3, 12))
    assert path.read_bytes() == made.read_bytes()


def test_two_processes_do_not_make_the_same_weights(data, tmp_path):
    with locked(tmp_path / "w.work"), pytest.raises(ConfigurationError, match="being written by"):
        make(PERCEPTRON, Rotation(), data, tmp_path / "w.safetensors")


def test_finished_weights_are_left_alone(data, made, updates):
    before = made.stat().st_mtime_ns
    assert make(PERCEPTRON, Rotation(), data, made) == made
    assert (made.stat().st_mtime_ns, updates) == (before, [])


def test_other_weights_are_not_overwritten(data, made):
    with pytest.raises(ConfigurationError, match="another checkpoint, it differs in seed"):
        make(PERCEPTRON, Rotation(), data, made, seed=1)


def test_the_global_generator_is_left_as_it_was(data):
    before = torch.random.get_rng_state()
    build_state(job(TINY, Rotation(), data))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_that_is_not_finite_stops_with_its_step(data, tmp_path):
    recipe = replace(TINY, optimizer=SGD(lr=1e30), model=MLP(width=8, depth=1, batch_norm=False))
    with pytest.raises(NumericError, match=r"step \d+: the loss is"):
        make(recipe, Rotation(), data, tmp_path / "w.safetensors")


# ---------------------------------------------------------------- what a card says


def test_a_card_says_where_the_weights_are_from(data, made):
    card = read_pretrained(made).card
    assert (card["method"], card["seed"], card["n_steps"]) == ("rotation", 0, 12)
    assert card["model"] == "mlp(width=8, depth=1)"
    assert card["recipe"] == PERCEPTRON.to_json()
    told = card["data"]
    assert (told["name"], told["split"], told["n_samples"]) == ("toy-8px", "pretrain", 300)
    assert told["shards_sha256"] == [s.sha256 for s in read_manifest(data).split("pretrain")]
    assert card["last_loss"] < 2
    assert card["environment"]["packages"]["torch"] == version("torch")


def test_weights_of_a_task_fit_a_model_of_other_classes(data, made):
    model = TINY.model.build((8, 8, 3), 17)
    read_pretrained(made).load_into(model)
    assert model.state_dict()[head_names(model)[0]].shape == (17, 8)


# ---------------------------------------------------------------- command line


def words(data, tmp_path, *more):
    model = ("--model", "mlp(width=8, depth=1)", "--n-steps", "12", "--batch-size", "16")
    where = ("--data", data, "--weights", tmp_path / "w.safetensors")
    return ("pretrain", "--preset", "smoke", *model, *where, *PLAIN, *more)


def test_the_command_makes_weights_and_says_where(deep_bootstrap, data, tmp_path):
    code, out, err = deep_bootstrap(*words(data, tmp_path))
    assert (code, out) == (0, f"{tmp_path / 'w.safetensors'}\n"), err
    assert read_pretrained(tmp_path / "w.safetensors").card["method"] == "rotation"


def test_the_command_takes_some_classes_of_a_data_set(deep_bootstrap, data, tmp_path):
    more = ("--method", "supervised", "--classes", "0", "1", "2", "--n-images", "50")
    code, _, err = deep_bootstrap(*words(data, tmp_path, *more))
    assert code == 0, err
    told = json.loads((tmp_path / "w.json").read_bytes())["data"]
    assert (told["classes"], told["n_samples"]) == (["class 0", "class 1", "class 2"], 50)


def test_the_command_refuses_an_unknown_method_in_one_line(deep_bootstrap, data, tmp_path):
    code, _, err = deep_bootstrap(*words(data, tmp_path, "--method", "rotatoin"))
    assert (code, err.count("\n")) == (2, 1)
    assert "unknown method 'rotatoin'; did you mean 'rotation'?" in err


# ---------------------------------------------------------------- the README's commands


def test_the_readme_commands_lead_from_nothing_to_an_explanation(
    deep_bootstrap, tmp_path, monkeypatch
):
    readme = tmp_path / "README.md"
    whole = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    readme.write_text(whole.split("## Pre-training, and why it helps")[1].split("\n## ")[0])
    found = commands_of(readme)
    kinds = ["generate", "pretrain", "compare", "compare", "explain"]
    assert [words[0] for words in found] == kinds
    monkeypatch.chdir(tmp_path)
    short = {"generate": ("--n", 1_024), "pretrain": ("--n-steps", 24)}
    short["compare"] = ("--n-steps", 24, "--n-samples", 200)
    for command, *rest in found:
        rest = [p for word in rest for p in sorted(glob(word.replace("laptop", "smoke"))) or [word]]
        plain = ("--preset", "smoke", *PLAIN, *short[command]) if command in short else ()
        code, out, err = deep_bootstrap(command, *rest, *plain)
        assert code == 0, err
    (explained,) = Path("results/rotation").glob("*/explain/*/explain.json")
    told = json.loads(explained.read_bytes())
    assert told["choice"]["init"]["method"] == "rotation"
    assert {told[run]["lr_pick"]["split"] for run in ("baseline", "choice")} == {"reference"}
    assert told["n_samples"]["200"]["error"]["total"]["interval_95"] is not None
    assert "picked by the error on `reference`" in out
