"""The denoiser: fresh weights from a seed, training that learns and that resumes bit for bit."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bootstrap.checkpoint import read_latest, write_checkpoint
from bootstrap.errors import ConfigurationError, NumericError
from generators.denoiser import (
    DenoiserConfig,
    FromData,
    FromDataAsEDM,
    FromGuide,
    build_denoiser,
    draw_noise,
    read_denoiser,
    velocity_loss,
    write_denoiser,
)
from generators.sources import LabelledImages
from generators.train import DenoiserRecipe, build_state, train_denoiser

TINY = DenoiserConfig(image_shape=(8, 8, 3), class_names=("a", "b"), widths=(16, 32), norm_groups=8)
RECIPE = DenoiserRecipe(config=TINY, n_images_seen=48, batch_size=8, warmup_images=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return LabelledImages(
        images=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        labels=rng.integers(0, 2, 20),
        class_names=TINY.class_names,
    )


def is_equal(a, b):
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def stop_after(n):
    """An `is_interrupted` that lets `n` steps pass and stops after the next."""
    answers = iter([False] * n)
    return lambda: next(answers, True)


def test_the_velocity_has_the_shape_of_the_image():
    denoiser = build_denoiser(TINY, seed=0)
    x = torch.zeros(2, 3, 8, 8)
    assert denoiser(x, torch.ones(2), torch.tensor([0, 1])).shape == x.shape


def test_the_velocity_depends_on_time_and_label():
    denoiser = build_denoiser(TINY, seed=0).eval()
    x = torch.ones(4, 3, 8, 8)
    label = torch.tensor([0, 0, 1, denoiser.null_label])
    with torch.no_grad():
        velocity = denoiser(x, torch.tensor([0.1, 0.9, 0.1, 0.1]), label)
    assert len({row.numpy().tobytes() for row in velocity}) == 4


def test_weights_come_back_in_half_precision(tmp_path):
    denoiser = build_denoiser(TINY, seed=0)
    write_denoiser(tmp_path / "w.safetensors", denoiser, {"images_seen": 5})
    read = read_denoiser(tmp_path / "w.safetensors").state_dict()
    halved = {name: tensor.half().float() for name, tensor in denoiser.state_dict().items()}
    assert is_equal(halved, read)


def test_the_configuration_comes_back_with_the_weights(tmp_path):
    write_denoiser(tmp_path / "w.safetensors", build_denoiser(TINY, seed=0), {})
    assert read_denoiser(tmp_path / "w.safetensors").config == TINY


def test_writing_what_was_read_gives_the_same_bytes(tmp_path):
    first = tmp_path / "first.safetensors"
    write_denoiser(first, build_denoiser(TINY, seed=0), {"k": 1})
    for name in "abcd":  # an unstable order would be right by chance now and then
        write_denoiser(tmp_path / name, read_denoiser(first), {"k": 1})
        assert (tmp_path / name).read_bytes() == first.read_bytes()


def test_weights_whose_configuration_is_an_entry_of_its_own_are_read(tmp_path):
    state = build_denoiser(TINY, seed=0).state_dict()
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items()}
    metadata = {"config": json.dumps(asdict(TINY)), "card": "{}"}
    save_file(tensors, tmp_path / "w.safetensors", metadata=metadata)
    assert read_denoiser(tmp_path / "w.safetensors").config == TINY


def test_fresh_weights_depend_on_the_seed_only():
    first = build_denoiser(TINY, seed=3).state_dict()
    torch.rand(5)
    assert is_equal(first, build_denoiser(TINY, seed=3).state_dict())


def test_another_seed_has_other_weights():
    first, second = (build_denoiser(TINY, seed=seed).state_dict() for seed in (0, 1))
    assert not is_equal(first, second)


def test_fresh_weights_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    build_denoiser(TINY, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"image_shape": (10, 8, 3)}, "must be multiples of 4"),
        ({"image_shape": (8, 9, 3)}, "must be multiples of 4"),
        ({"widths": (16, 20)}, "must be multiples of norm_groups=8"),
        ({"widths": ()}, "all must be at least 1"),
        ({"widths": (0, 8)}, "all must be at least 1"),
        ({"fold_px": 0}, "all must be at least 1"),
        ({"norm_groups": 0}, "all must be at least 1"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(change, rule):
    with pytest.raises(ValueError, match=rule):
        DenoiserConfig(**{**vars(TINY), **change})


def options_in(message):
    """The options that a refusal advises, as fields of the configuration."""
    words = re.search(r"train with `(.*)`", message)[1].split("--")[1:]
    values = {word.split()[0].replace("-", "_"): word.split()[1:] for word in words}
    fold = {"fold_px": int(values["fold_px"][0])} if "fold_px" in values else {}
    return {"widths": tuple(map(int, values["widths"])), **fold}


@pytest.mark.parametrize(
    ("side", "sides", "options"),
    [
        (28, (24, 32), "--widths 48 96`"),
        (30, (24, 32), "--widths 48`"),
        (25, (24, 32), "--fold-px 1 --widths 48`"),
        (4, (8,), "--widths 48 96`"),
    ],
)
def test_a_refused_side_comes_with_sides_and_options_that_work(side, sides, options):
    with pytest.raises(ConfigurationError) as caught:
        DenoiserConfig(image_shape=(side, side, 1))
    message = str(caught.value)
    assert f"such as {' or '.join(map(str, sides))}; or train with" in message
    assert options in message
    for works in sides:
        DenoiserConfig(image_shape=(works, works, 1))
    config = DenoiserConfig(image_shape=(side, side, 1), **options_in(message))
    x = torch.zeros(1, 1, side, side)
    with torch.no_grad():
        assert build_denoiser(config, 0)(x, torch.ones(1), torch.tensor([0])).shape == x.shape


def test_an_oblong_image_is_judged_by_both_sides():
    with pytest.raises(ConfigurationError, match=r"8x12: .* such as 8 or 16; .*--widths 48 96`"):
        DenoiserConfig(image_shape=(8, 12, 3))


def test_the_loss_of_the_right_velocity_is_zero():
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)

    def exact(x, t, labels):
        return (x - images) / t[:, None, None, None]

    noise = draw_noise(FromData(), 2, (3, 8, 8), torch.Generator().manual_seed(0))
    loss = velocity_loss(exact, images, None, FromData(), noise)
    assert loss.item() < 1e-8


def test_the_loss_falls_on_one_batch():
    denoiser = build_denoiser(TINY, seed=0)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=5e-3)
    images = torch.linspace(-1, 1, 8 * 3 * 8 * 8).reshape(8, 3, 8, 8)
    losses = []
    for _ in range(30):
        generator = torch.Generator().manual_seed(0)
        labels = torch.zeros(8, dtype=torch.int64)
        noise = draw_noise(FromData(), 8, (3, 8, 8), generator)
        loss = velocity_loss(denoiser, images, labels, FromData(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_training_resumed_in_the_middle_equals_training_without_a_stop(tmp_path, data):
    whole = build_state(RECIPE, CPU)
    list(train_denoiser(RECIPE, data, whole))

    part = build_state(RECIPE, CPU)
    list(train_denoiser(RECIPE, data, part, is_interrupted=stop_after(1)))
    assert part.step == 2
    write_checkpoint(tmp_path, "denoiser", part.step, part.tensors(), part.meta())
    resumed = build_state(RECIPE, CPU)
    tensors, meta = read_latest(tmp_path, "denoiser")
    resumed.load(tensors, **meta)
    list(train_denoiser(RECIPE, data, resumed))

    assert resumed.step == whole.step == 6
    assert is_equal(whole.tensors(), resumed.tensors())


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_without_mirroring_images_are_learned_as_they_are(data, is_symmetric):
    images = data.images.copy()
    if is_symmetric:
        images[:, :, 4:] = images[:, :, 3::-1]
    states = [build_state(RECIPE, CPU) for _ in range(2)]
    for state, mirror in zip(states, (True, False), strict=True):
        recipe = replace(RECIPE, mirror=mirror)
        list(train_denoiser(recipe, replace(data, images=images), state))
    assert is_equal(states[0].model.state_dict(), states[1].model.state_dict()) == is_symmetric


def test_training_leaves_the_global_generator_alone(data):
    before = torch.get_rng_state()
    list(train_denoiser(RECIPE, data, build_state(RECIPE, CPU)))
    assert torch.equal(torch.get_rng_state(), before)


def test_records_come_at_the_interval_and_at_the_end(data):
    records = list(train_denoiser(RECIPE, data, build_state(RECIPE, CPU), record_every_steps=4))
    assert [(r.step, r.images_seen) for r in records] == [(4, 32), (6, 48)]


def test_the_average_lags_behind_the_weights(data):
    state = build_state(RECIPE, CPU)
    fresh = build_denoiser(TINY, RECIPE.seed).state_dict()
    list(train_denoiser(RECIPE, data, state))
    moved, lagging = (
        sum((m.state_dict()[name] - t).abs().sum() for name, t in fresh.items())
        for m in (state.model, state.ema)
    )
    assert 0 < lagging < moved


def test_training_may_start_from_given_weights():
    initial = build_denoiser(TINY, seed=9)
    state = build_state(RECIPE, CPU, initial)
    assert is_equal(initial.state_dict(), state.model.state_dict())
    assert is_equal(initial.state_dict(), state.ema.state_dict())


def test_weights_that_are_not_finite_stop_training_with_the_step(data):
    state = build_state(RECIPE, CPU)
    with torch.no_grad():
        next(state.model.parameters()).fill_(float("nan"))
    with pytest.raises(NumericError, match=r"step 0: .*lower the learning rate"):
        list(train_denoiser(RECIPE, data, state))


def test_the_learning_rate_warms_up_stays_and_falls():
    recipe = DenoiserRecipe(n_images_seen=1_000, batch_size=10, warmup_images=100, lr=1.0)
    rates = [recipe.lr_at(step) for step in (0, 4, 9, 50, 79, 80, 90, 99)]
    assert rates == pytest.approx([0.1, 0.5, 1, 1, 1, 1, 0.5, 0.05])


def test_the_decay_of_the_average_warms_up():
    decays = [RECIPE.ema_decay_at(step) for step in (0, 8, 10**6)]
    assert decays == pytest.approx([0.1, 0.5, 0.9995])


@pytest.mark.parametrize("n_midpoint", [1, 3])
def test_a_student_learns_the_midpoint_steps_of_its_guide(n_midpoint):
    guide = build_denoiser(TINY, seed=0).eval()
    x, t, label = torch.randn(4, 3, 8, 8), torch.full((4,), 0.5), torch.tensor([0, 1, 0, 1])

    def guided(x, t):
        conditional, free = guide(x, t, label), guide(x, t, torch.full_like(label, 2))
        return free + 3.0 * (conditional - free)

    end, step = x, 0.25 / n_midpoint
    with torch.no_grad():
        for k in range(n_midpoint):
            now = t - k * step
            middle = end - step / 2 * guided(end, now)
            end = end - step * guided(middle, now - step / 2)
    way = FromGuide(guide, guidance=3.0, n_steps=4, n_midpoint=n_midpoint)
    target = way.velocity(x, t, label, x, x)
    torch.testing.assert_close(x - 0.25 * target, end)


def test_a_student_learns_at_the_starts_of_its_steps():
    times = FromGuide(None, guidance=2.0, n_steps=4).times(1_000, torch.Generator().manual_seed(0))
    assert set(times.tolist()) == {0.25, 0.5, 0.75, 1.0}


def test_a_guide_changes_what_is_learned(data):
    guide = build_denoiser(TINY, seed=1).eval().requires_grad_(False)
    recipe = replace(RECIPE, distill_steps=2)
    plain, guided = build_state(RECIPE, CPU), build_state(recipe, CPU)
    list(train_denoiser(RECIPE, data, plain))
    list(train_denoiser(recipe, data, guided, guide=guide))
    assert not is_equal(plain.model.state_dict(), guided.model.state_dict())


def test_the_loss_with_edm_preconditioning_is_the_published_one():
    denoiser = build_denoiser(replace(TINY, prediction="edm"), seed=0)
    images, labels = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0, 1, 0, 1])
    noise = draw_noise(FromDataAsEDM(), 4, (3, 8, 8), torch.Generator().manual_seed(0))
    loss = velocity_loss(denoiser, images, labels, FromDataAsEDM(), noise)

    sigma, data = (noise.t / (1 - noise.t))[:, None, None, None], 0.5
    x = images + sigma * noise.eps
    root = (sigma**2 + data**2).sqrt()
    c_skip, c_out, c_in = data**2 / root**2, sigma * data / root, 1 / root
    clean = c_skip * x + c_out * denoiser._network(c_in * x, noise.t, labels)
    expected = ((clean - images).square() / c_out**2).mean()
    torch.testing.assert_close(loss, expected)


def test_edm_preconditioning_is_finite_at_pure_noise():
    denoiser = build_denoiser(replace(TINY, prediction="edm"), seed=0)
    x, t = torch.randn(2, 3, 8, 8), torch.ones(2)
    assert torch.isfinite(denoiser(x, t, torch.tensor([0, 1]))).all()


def test_the_times_of_edm_are_log_normal_noise_levels():
    t = FromDataAsEDM().times(20_000, torch.Generator().manual_seed(0))
    log_sigma = (t / (1 - t)).log()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.03)
