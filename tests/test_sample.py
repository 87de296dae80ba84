"""An image is a function of its id; solvers are exact where the flow is straight."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bootstrap.errors import ConfigurationError, DataError, NumericError
from generators.denoiser import DenoiserConfig, build_denoiser, write_denoiser
from generators.sample import (
    SAMPLE_BATCH,
    SOLVERS,
    DiffusionSource,
    DiffusionSpec,
    SamplerConfig,
    build_scheduler,
    noise_of_ids,
    solve,
    to_uint8,
)
from generators.write import generate

TINY = DenoiserConfig(image_shape=(8, 8, 3), widths=(16, 32), norm_groups=8)
N_CLASSES = TINY.n_classes


class PointMass:
    """The exact velocity of a flow whose data are one image: (x_t - image) / t."""

    config, null_label = TINY, N_CLASSES

    def __init__(self, image):
        self.image = image

    def __call__(self, x, t, label):
        return (x - self.image) / t[:, None, None, None]


class ByLabel:
    """A constant velocity for each label; counts how often it is asked."""

    config, null_label = TINY, N_CLASSES

    def __init__(self, velocities):
        self.velocities = torch.tensor(velocities)
        self.n_calls = 0

    def __call__(self, x, t, label):
        self.n_calls += 1
        return self.velocities[label][:, None, None, None].expand_as(x)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny-v1.safetensors"
    write_denoiser(path, build_denoiser(TINY, seed=0), {})
    return path


@pytest.fixture
def source(weights, flags):
    config = SamplerConfig(solver="dpm++", n_steps=2)
    return DiffusionSource(path=weights, config=config, flags=flags)


def with_denoiser(source, denoiser):
    source.__dict__["denoiser"] = denoiser
    return source


def noise(n=2):
    return torch.from_numpy(noise_of_ids(np.arange(n), np.zeros(n, int), TINY.image_shape, 0))


def ask(n, first=0):
    ids = np.arange(first, first + n)
    return ids, ids % N_CLASSES, np.zeros(n, dtype=np.int64)


def test_the_image_of_an_id_does_not_depend_on_the_other_ids(source):
    ids, labels, attempts = ask(SAMPLE_BATCH + 3)
    together = source.sample(ids, labels, attempts)
    some = np.array([130, 0, 77])
    alone = source.sample(ids[some], labels[some], attempts[some])
    np.testing.assert_array_equal(alone, together[some])


def test_images_of_different_ids_differ(source):
    ids, _, attempts = ask(3)
    images = source.sample(ids, np.zeros(3, dtype=np.int64), attempts)
    assert len({image.tobytes() for image in images}) == 3


def test_another_attempt_is_another_image(source):
    ids, labels, attempts = ask(1)
    first, second = (source.sample(ids, labels, attempts + a) for a in (0, 1))
    assert (first != second).any()


def test_another_seed_is_another_image(source):
    first, second = (replace(source, seed=seed).sample(*ask(1)) for seed in (0, 1))
    assert (first != second).any()


def test_images_are_uint8_of_the_denoisers_shape(source):
    images = source.sample(*ask(5))
    assert (images.shape, images.dtype) == ((5, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(("guidance", "n_calls"), [(1.0, 6), (2.0, 12), (0.0, 12)])
def test_guidance_other_than_one_asks_the_network_twice_a_step(flags, guidance, n_calls):
    denoiser = ByLabel([0.0] * (N_CLASSES + 1))
    config = SamplerConfig(n_steps=6, guidance=guidance)
    solve(denoiser, noise(), torch.tensor([0, 1]), config, flags)
    assert denoiser.n_calls == n_calls == config.nfe


@pytest.mark.parametrize("guidance", [1.0, 2.0, 3.5])
def test_guidance_moves_away_from_the_unconditional_velocity(flags, guidance):
    denoiser = ByLabel([1.0] * N_CLASSES + [0.25])
    config = SamplerConfig(solver="euler", n_steps=4, guidance=guidance)
    x = solve(denoiser, noise(), torch.tensor([0, 1]), config, flags)
    velocity = 0.25 + guidance * (1 - 0.25)
    torch.testing.assert_close(x, noise() - velocity, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_steps", [4, 8, 12])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_returns_finite_images(flags, solver, n_steps):
    denoiser = build_denoiser(TINY, seed=0).eval()
    config = SamplerConfig(solver=solver, n_steps=n_steps, guidance=2.0, shift=1.5)
    x = solve(denoiser, noise(), torch.tensor([0, 1]), config, flags)
    assert torch.isfinite(x).all()
    assert x.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("n_steps", [1, 4, 7, 12])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_is_exact_for_data_of_one_image(flags, solver, n_steps, shift):
    image = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    config = SamplerConfig(solver=solver, n_steps=n_steps, shift=shift)
    x = solve(PointMass(image), noise(), torch.tensor([0, 1]), config, flags)
    torch.testing.assert_close(x, image.expand_as(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_times_of_a_solver_are_evenly_spaced(solver):
    sigmas = build_scheduler(SamplerConfig(solver=solver, n_steps=5)).sigmas.unique().flip(0)
    np.testing.assert_allclose(sigmas, np.linspace(1, 0, 6), atol=2e-3)


def test_heun_takes_the_mean_of_both_ends_of_a_step(flags):
    class Growing:
        config, null_label = TINY, N_CLASSES

        def __init__(self):
            self.calls = []

        def __call__(self, x, t, label):
            self.calls.append(float(t[0]))
            return x

    denoiser, config = Growing(), SamplerConfig(solver="heun", n_steps=2)
    x = solve(denoiser, noise(), torch.tensor([0, 1]), config, flags)
    assert denoiser.calls == [1.0, 0.5, 0.5]
    assert len(denoiser.calls) == config.nfe
    middle = noise() * (1 - 0.25 * (1 + 0.5))  # velocities at both ends: x, then x / 2
    torch.testing.assert_close(x, middle - 0.5 * middle)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_shift_moves_the_times_towards_noise(solver):
    config = SamplerConfig(solver=solver, n_steps=5, shift=3.0)
    sigmas = build_scheduler(config).sigmas.unique().flip(0)
    even = np.linspace(1, 0, 6)
    np.testing.assert_allclose(sigmas, 3 * even / (1 + 2 * even), atol=3e-3)


def test_nan_from_the_network_is_an_error_that_names_the_ids(source):
    velocities = [0.0] * (N_CLASSES + 1)
    velocities[3] = float("nan")
    with pytest.raises(NumericError, match=r"ids \[1003, 1013\]"):
        with_denoiser(source, ByLabel(velocities)).sample(*ask(20, first=1_000)[:1], *ask(20)[1:])


def test_infinity_from_the_network_is_an_error(source):
    velocities = [float("inf")] * (N_CLASSES + 1)
    with pytest.raises(NumericError, match="NaN or infinity"):
        with_denoiser(source, ByLabel(velocities)).sample(*ask(2))


def test_an_overflow_in_bf16_is_sampled_again_in_full_precision(source, flags):
    class OverflowsInBf16(PointMass):
        def __call__(self, x, t, label):
            bad = torch.is_autocast_enabled("cpu")
            return super().__call__(x, t, label) * (float("nan") if bad else 1)

    in_bf16 = replace(source, flags=replace(flags, precision="bf16"))
    image = torch.full((1, 3, 8, 8), 1.0)
    assert (with_denoiser(in_bf16, OverflowsInBf16(image)).sample(*ask(2)) == 255).all()


class BlackInBf16(PointMass):
    """Right in full precision, black under autocast; counts the draws of one step."""

    def __init__(self, image):
        super().__init__(image)
        self.n_draws = 0

    def __call__(self, x, t, label):
        self.n_draws += 1
        if torch.is_autocast_enabled("cpu"):
            return (x + 1) / t[:, None, None, None]
        return super().__call__(x, t, label)


def test_black_images_in_bf16_are_drawn_once_more_in_full_precision(source, flags):
    image = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    denoiser = BlackInBf16(image)
    config = SamplerConfig(solver="euler", n_steps=1)
    in_bf16 = replace(source, flags=replace(flags, precision="bf16"), config=config)
    images = with_denoiser(in_bf16, denoiser).sample(*ask(3))
    np.testing.assert_array_equal(images, np.repeat(to_uint8(image), 3, axis=0))
    assert denoiser.n_draws == 2


def test_only_the_images_of_a_single_colour_are_replaced(source, flags):
    class OneBlackInBf16(BlackInBf16):
        def __call__(self, x, t, label):
            velocity = super().__call__(x, t, label)
            if not torch.is_autocast_enabled("cpu"):
                return velocity
            return torch.where((label == 1)[:, None, None, None], velocity, 0 * x)

    image = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    config = SamplerConfig(solver="euler", n_steps=1)
    in_bf16 = replace(source, flags=replace(flags, precision="bf16"), config=config)
    images = with_denoiser(in_bf16, OneBlackInBf16(image)).sample(*ask(3))
    expected = to_uint8(torch.cat([noise(1), image, noise(3)[2:]]))
    np.testing.assert_array_equal(images, expected)


def test_images_that_stay_black_stop_the_generation_with_their_ids_and_nothing_written(
    source, flags, tmp_path
):
    black = with_denoiser(
        replace(source, flags=replace(flags, precision="bf16")),
        PointMass(torch.full((1, 3, 8, 8), -1.0)),
    )
    with pytest.raises(NumericError, match=r"ids \[0, 1, 2, 3, 4\].* single colour") as caught:
        generate(black, tmp_path / "data", {"test": 10})
    assert caught.value.exit_code == 5
    assert not list((tmp_path / "data").glob("[a-z]*"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-1, 0), (1, 255), (-9, 0), (9, 255), (0, 128), (-0.998, 0), (0.9, 242), (1 / 255, 128)],
)
def test_pixels_are_rounded_and_clamped(value, expected):
    assert to_uint8(torch.full((1, 1, 1, 1), value, dtype=torch.float32)).item() == expected


def test_every_uint8_survives_the_way_to_the_unit_ball_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = pixels.float().reshape(1, 1, 16, 16) / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(x).reshape(-1), pixels.numpy())


def test_channels_go_last():
    x = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    assert to_uint8(x).tolist() == [[[[0, 128, 255]]]]


def test_noise_is_that_of_the_id_and_attempt():
    together = noise_of_ids(np.array([4, 9]), np.array([0, 1]), (8, 8, 3), 0)
    alone = noise_of_ids(np.array([9]), np.array([1]), (8, 8, 3), 0)
    np.testing.assert_array_equal(together[1:], alone)


def test_an_unknown_solver_is_refused():
    with pytest.raises(ConfigurationError, match="use one of euler, heun, dpm"):
        SamplerConfig(solver="magic")


def test_no_steps_are_refused():
    with pytest.raises(ConfigurationError, match="n_steps=0 must be at least 1"):
        SamplerConfig(n_steps=0)


def test_weights_that_are_not_there_are_refused_with_the_remedy(tmp_path, flags):
    with pytest.raises(DataError, match=r"no such weights; train some with `deep-bootstrap train-"):
        DiffusionSpec(weights="none.safetensors").build(tmp_path, flags)


def test_shipped_weights_are_found_by_name(weights, flags):
    source = DiffusionSpec(weights=weights.name, n_steps=3).build(weights.parent, flags)
    assert (source.path, source.config.n_steps, source.name) == (weights, 3, "tiny-v1")


def test_the_provenance_changes_with_the_weights(source, tmp_path):
    other = tmp_path / source.path.name
    write_denoiser(other, build_denoiser(TINY, seed=1), {})
    assert source.provenance() != replace(source, path=other).provenance()
