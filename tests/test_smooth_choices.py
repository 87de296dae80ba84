"""Penalties of the Jacobian and of spectral norms, and class weights, compute what they say."""

from itertools import product

import numpy as np
import pytest
import torch
from choices import context_of
from test_choice_values import batch_of, linear, pixels, prepared
from torch import nn
from torch.nn.functional import cross_entropy

from bootstrap.errors import ConfigurationError
from bootstrap.interventions import Gradient
from bootstrap.interventions.class_weights import ClassWeights
from bootstrap.interventions.jacobian import JacobianPenalty
from bootstrap.interventions.long_tail import LongTail, class_shares
from bootstrap.interventions.robust_error import RobustError
from bootstrap.interventions.spectral import (
    SpectralNormalisation,
    SpectralPenalty,
    top_singular,
)
from bootstrap.objective import cross_entropies
from bootstrap.recipe import Recipe

N, K = 16, 10


@pytest.fixture(autouse=True)
def quiet_rng():
    with torch.random.fork_rng():
        yield


def smooth_net(n_classes=3, seed=0):
    """A net whose second derivatives exist, in float64."""
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, n_classes)
    return nn.Sequential(*layers).double()


# ---------------------------------------------------------------- Jacobian


def test_over_all_signs_the_projection_has_the_frobenius_norm_of_the_jacobian(monkeypatch):
    """The penalty of each of the 2^K signs, averaged, is that of the exact Jacobian."""
    choice, model, batch = JacobianPenalty(strength=2.0), smooth_net(), batch_of(n=2)
    inputs, context = prepared(choice, batch, pixels(batch).double(), n_classes=3)
    found = []
    for signs in product((-1.0, 1.0), repeat=3):
        rows = torch.tensor([signs] * 2, dtype=torch.float64)
        monkeypatch.setattr(JacobianPenalty, "signs", lambda *_, rows=rows: rows)
        losses = choice.wrap_sample_loss(lambda f, i: f(i.x).sum(dim=1) * 0, context)
        found.append(losses(model, inputs).detach())
    slopes = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(inputs.x)
    in_pixels = slopes / context.deviation
    torch.testing.assert_close(torch.stack(found).mean(dim=0), in_pixels.square().sum((1, 2, 3, 4)))


def test_the_signs_of_a_sample_are_drawn_by_step_and_slot():
    choice, logits = JacobianPenalty(), torch.zeros(200, K)
    draws = [
        choice.signs(logits, context_of(choice, step=step), kind)
        for step, kind in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert {*draws[0].unique().tolist()} == {-1.0, 1.0}
    assert abs(float(draws[0].mean())) < 0.1
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_the_gradient_of_the_jacobian_penalty_is_that_of_a_linear_models_weights():
    choice, batch = JacobianPenalty(strength=2.0), batch_of()
    model = linear()
    inputs, context = prepared(choice, batch, pixels(batch))
    losses = choice.wrap_sample_loss(lambda f, i: f(i.x).sum(dim=1) * 0, context)
    losses(model, inputs).sum().backward()
    signs = choice.signs(torch.zeros(N, K), context, 0)
    scale = context.deviation.square().expand(3, 8, 8).flatten()
    expected = 2 * signs.T @ signs @ model[1].weight.detach() / scale  # of |s W / deviation|^2
    torch.testing.assert_close(model[1].weight.grad, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- spectral norms


@pytest.mark.parametrize("shape", [(20, 30), (12, 5, 3, 3)], ids=str)
def test_power_iterations_find_the_largest_singular_value(shape):
    torch.manual_seed(0)
    weight, u = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    for _ in range(300):
        u, v, sigma = top_singular(weight, u / u.norm())
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    torch.testing.assert_close(sigma, values[0])
    assert abs(float(u @ left[:, 0])) == pytest.approx(1)
    assert abs(float(v @ right[0])) == pytest.approx(1)


def test_one_iteration_a_step_follows_weights_that_change_slowly():
    choice, model = SpectralPenalty(), linear()
    context = context_of(choice, model=model)
    for _ in range(100):
        model[1].weight.data.add_(0.0005 * torch.randn_like(model[1].weight))
        choice.iterate(context)
    ((_, _, _, sigma),) = choice.vectors(context)
    exact = torch.linalg.matrix_norm(model[1].weight.detach(), 2)
    assert float(sigma) == pytest.approx(float(exact), rel=0.02)
    assert choice.measure(None, context)["log_spectral_norms"] == pytest.approx(
        float(exact.log()), abs=0.02
    )


def settled(choice, model, n=3_000):
    """A context whose vectors have converged."""
    context = context_of(choice, model=model)
    for _ in range(n):
        choice.iterate(context)
    return context


def slope_of(choice, model, context, inputs):
    """The gradient that a choice leaves, of the model's cross-entropy."""
    model.zero_grad()

    def gradient(given):
        loss = cross_entropies(model, given).mean()
        loss.backward()
        return Gradient(loss.detach(), model(given.x).detach())

    choice.wrap_gradient(gradient, context)(inputs)
    return model[1].weight.grad.clone()


def test_the_spectral_penalty_adds_the_gradient_of_the_squared_norm():
    choice, model, batch = SpectralPenalty(strength=0.3), linear().double(), batch_of()
    inputs, _ = prepared(choice, batch, pixels(batch).double(), model=model)
    context = settled(choice, model)
    with_it = slope_of(choice, model, context, inputs)
    without = slope_of(SpectralPenalty(strength=0.0), model, context, inputs)
    weight = model[1].weight.detach().clone().requires_grad_()
    (0.15 * torch.linalg.matrix_norm(weight, 2).square()).backward()
    torch.testing.assert_close(with_it - without, weight.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_gradient_through_the_normalisation_is_that_of_autograd(strength):
    choice, model, batch = SpectralNormalisation(strength=strength), linear().double(), batch_of()
    inputs, _ = prepared(choice, batch, pixels(batch).double(), model=model)
    before = model[1].weight.detach().clone()
    found = slope_of(choice, model, settled(choice, model), inputs)
    assert torch.equal(model[1].weight.detach(), before)
    weight = before.clone().requires_grad_()
    divided = weight / torch.linalg.matrix_norm(weight, 2) ** strength
    logits = inputs.x.flatten(1) @ divided.T + model[1].bias.detach()
    cross_entropy(logits, inputs.labels).backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-6, atol=1e-9)


def test_predictions_are_those_of_layers_of_norm_1():
    choice, model, batch = SpectralNormalisation(), linear(), batch_of()
    context = settled(choice, model)
    weight, bias = (t.detach().clone() for t in (model[1].weight, model[1].bias))
    with torch.no_grad():
        found = choice.wrap_prediction(model, "test", context)(pixels(batch))
    norm = torch.linalg.matrix_norm(weight, 2)
    expected = pixels(batch).flatten(1) @ (weight / norm).T + bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model[1].weight.detach(), weight)


def test_an_evaluation_does_not_move_the_vectors():
    choice, model = SpectralNormalisation(), linear()
    context = context_of(choice, model=model)
    before = context.state["u0"].clone()
    choice.wrap_prediction(model, "test", context)(pixels(batch_of()))
    choice.measure(None, context)
    assert torch.equal(context.state["u0"], before)


def test_the_normalisation_is_refused_beside_a_metric_of_the_saved_weights():
    with pytest.raises(ConfigurationError, match="it attacks the weights as they are saved"):
        Recipe(choices=(SpectralNormalisation(), RobustError()))


# ---------------------------------------------------------------- class weights


def test_weighted_classes_count_alike_and_the_mean_weight_is_1():
    choice = ClassWeights(power=1.0, rho=10.0)
    weights = context_of(choice).state["weights"].double().numpy()
    shares = class_shares(K, 10.0)
    np.testing.assert_allclose(shares * weights, 1 / K, rtol=1e-6)
    root = context_of(ClassWeights(power=0.5, rho=10.0)).state["weights"].double().numpy()
    assert (shares * root).sum() == pytest.approx(1)
    np.testing.assert_allclose(root / root[0], np.sqrt(weights / weights[0]), rtol=1e-6)


def test_the_weighted_loss_is_that_of_torch_before_its_own_normalisation():
    choice, batch, model = ClassWeights(rho=10.0), batch_of(), linear()
    inputs, context = prepared(choice, batch, pixels(batch))
    found = choice.wrap_sample_loss(cross_entropies, context)(model, inputs)
    expected = cross_entropy(
        *(model(inputs.x), batch.labels), weight=context.state["weights"], reduction="none"
    )
    torch.testing.assert_close(found, expected)


def test_weights_of_another_long_tail_are_refused():
    with pytest.raises(ConfigurationError, match=r"rho=100.0 is not that of long_tail, 10.0"):
        Recipe(choices=(LongTail(rho=10.0), ClassWeights()))
