"""Each design choice computes what its definition says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from choices import RECIPE, context_of, few_steps
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from bootstrap.batch import Batch
from bootstrap.interventions import Gradient, Inputs
from bootstrap.interventions.adversarial import FGM, FGSM, PGD
from bootstrap.interventions.dropout import Dropout
from bootstrap.interventions.flooding import Flooding
from bootstrap.interventions.focal import Focal
from bootstrap.interventions.forgetting import ForgettingEvents, ProbeFlips
from bootstrap.interventions.gradient_penalty import GradientPenalty
from bootstrap.interventions.label_smoothing import LabelSmoothing
from bootstrap.interventions.logit_adjustment import LogitAdjustment, LogitAdjustmentPostHoc
from bootstrap.interventions.mixing import Cutmix, Cutout, Mixup
from bootstrap.interventions.noise import InputNoise, WeightNoise
from bootstrap.interventions.penalty import L1, L2, WEISSI, weight_tensors
from bootstrap.interventions.robust_error import RobustError
from bootstrap.interventions.sam import SAM
from bootstrap.interventions.squared_error import MSE
from bootstrap.interventions.vat import VAT
from bootstrap.interventions.weight_decay import WeightDecay
from bootstrap.objective import build_inputs, build_loss, cross_entropies, mean_of
from bootstrap.optimizers import SGD, AdamW, Constant
from bootstrap.ranks import ALONE
from bootstrap.wrapping import build_prediction

N, K = 16, 10
ONE_STEP = replace(RECIPE, n_steps=1, optimizer=SGD(lr=0.05), schedule=Constant())


def batch_of(n=N, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, K, n))
    return Batch(images=images, labels=labels, ids=10**9 + np.arange(n))


def pixels(batch):
    return (batch.images.float() / 255).permute(0, 3, 1, 2)


def prepared(choice, batch, x, **where):
    """The batch as the model gets it, and its context."""
    context = context_of(choice, **where)
    return build_inputs(x, batch, K, [(choice, context)], ALONE), context


def linear(n_in=192, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(n_in, K))


@pytest.fixture(autouse=True)
def quiet_rng():
    with torch.random.fork_rng():
        yield


# ---------------------------------------------------------------- images and targets


def test_smoothed_labels_have_the_loss_of_torch():
    batch, model = batch_of(), linear()
    inputs, context = prepared(LabelSmoothing(epsilon=0.3), batch, pixels(batch))
    found = build_loss([(LabelSmoothing(), context)], ALONE)(model, inputs)
    expected = cross_entropy(model(pixels(batch)), batch.labels, label_smoothing=0.3)
    torch.testing.assert_close(found, expected)


def test_mixup_has_the_convex_loss_of_both_labels():
    batch, model = batch_of(), linear()
    x = pixels(batch)
    inputs, context = prepared(Mixup(alpha=0.4), batch, x)
    (own, partner) = own_and_partner(context, 0.4)
    share = own.float()[:, None, None, None]
    torch.testing.assert_close(inputs.x, share * x + (1 - share) * x[partner])
    logits = model(inputs.x)
    losses = [
        cross_entropy(logits, y, reduction="none") for y in (inputs.labels, batch.labels[partner])
    ]
    expected = (own * losses[0] + (1 - own) * losses[1]).mean().float()
    torch.testing.assert_close(mean_of(cross_entropies(model, inputs)), expected)
    assert own.std() > 0.05
    assert (partner != torch.arange(N)).any()


def own_and_partner(context, alpha):
    from bootstrap.interventions.mixing import shares_and_partners

    return map(torch.from_numpy, shares_and_partners(N, alpha, 1.0, context))


def test_the_shares_of_mixup_are_beta_distributed():
    from bootstrap.interventions.mixing import shares_and_partners

    share, _ = shares_and_partners(20_000, 0.4, 1.0, context_of(Mixup()))
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.var() == pytest.approx(0.25 / 1.8, abs=0.005)  # 1 / (4 (2 alpha + 1))


def test_the_labels_of_cutmix_have_the_shares_of_the_areas():
    batch = batch_of()
    x = pixels(batch)
    inputs, _ = prepared(Cutmix(probability=1.0), batch, x)
    is_own = (inputs.x == x).all(dim=1)  # by pixel; values of two images are hardly ever equal
    own = one_hot(batch.labels, K) > 0
    areas = is_own.float().mean(dim=(1, 2))
    mixed = [k for k in range(N) if inputs.targets[k].max() < 1]
    assert len(mixed) > N / 2
    for k in mixed:
        assert inputs.targets[k][own[k]].item() == pytest.approx(areas[k].item(), abs=1e-6)
    torch.testing.assert_close(inputs.targets.sum(dim=1), torch.ones(N))


def test_cutout_makes_one_square_hole_of_zeros():
    batch = batch_of(n=400)
    inputs, _ = prepared(Cutout(size_px=3), batch, pixels(batch) + 1)
    hole = (inputs.x == 0).all(dim=1)
    assert torch.equal(hole[:, None].expand(-1, 3, -1, -1), inputs.x == 0)
    areas = hole.sum(dim=(1, 2))
    assert int(areas.max()) == 9
    assert int(areas.min()) == 4  # around the corner pixel
    assert hole.float().mean(dim=0).min() > 0  # every pixel is in some hole


def test_input_noise_has_its_deviation_in_pixel_units():
    batch = batch_of(n=400)
    inputs, context = prepared(InputNoise(sigma=0.1), batch, pixels(batch))
    noise = (inputs.x - pixels(batch)) * context.deviation
    torch.testing.assert_close(noise.std(dim=(0, 2, 3)), torch.full((3,), 0.1), rtol=0.03, atol=0)


@pytest.mark.parametrize("choice", [Cutout(size_px=3), Mixup(), Cutmix(), InputNoise()], ids=repr)
def test_draws_are_those_of_the_step_and_the_seed(choice):
    batch = batch_of()

    def x(**where):
        return prepared(choice, batch, pixels(batch), **where)[0].x

    assert torch.equal(x(step=3), x(step=3))
    assert not torch.equal(x(step=3), x(step=4))
    assert not torch.equal(x(seed=1), x(seed=2))


# ---------------------------------------------------------------- the loss


def one_update(data, *choices, recipe=ONE_STEP):
    """The weights before and after one step."""
    before, after = (
        few_steps(data, *choices, recipe=r)[0].model
        for r in (replace(recipe, optimizer=replace(recipe.optimizer, lr=1e-45)), recipe)
    )
    return [p.detach() for p in before.parameters()], [p.detach() for p in after.parameters()]


def test_below_the_level_flooding_turns_the_gradient_round(toy_data):
    before, plain = one_update(toy_data)
    for level, sign in ((100.0, -1), (1e-3, 1)):
        _, flooded = one_update(toy_data, Flooding(level=level))
        for b, p, f in zip(before, plain, flooded, strict=True):
            torch.testing.assert_close(f - b, sign * (p - b), rtol=1e-4, atol=1e-7)


def test_flooding_counts_the_batches_below_its_level(toy_data):
    for level, n in ((100.0, RECIPE.n_steps), (1e-6, 0)):
        state, _ = few_steps(toy_data, Flooding(level=level))
        assert state.choices[0]["n_flooded"].item() == n


def test_a_step_with_two_gradients_is_counted_once(toy_data):
    counters = (Flooding(level=100.0), ForgettingEvents())
    flooded, forgotten, _ = few_steps(toy_data, *counters, SAM(rho=0.0))[0].choices
    assert flooded["n_flooded"].item() == RECIPE.n_steps
    once = few_steps(toy_data, *counters)[0].choices[1]
    for name, values in once.items():
        assert torch.equal(forgotten[name], values), name


def test_flooding_holds_the_mean_loss_at_its_level():
    inputs = plain_inputs()
    for level in (0.5, 4.0):
        context = context_of(Flooding())
        loss = build_loss([(Flooding(level=level), context)], ALONE)(linear(), inputs)
        plain = cross_entropy(linear()(inputs.x), inputs.labels)
        torch.testing.assert_close(loss, (plain - level).abs() + level)


def plain_inputs(dtype=torch.float32):
    batch = batch_of()
    return Inputs(
        x=pixels(batch).to(dtype),
        targets=one_hot(batch.labels, K).to(dtype),
        labels=batch.labels,
        ids=batch.ids,
        index=batch.ids - 10**9,
    )


def test_the_focal_loss_is_its_formula():
    inputs, model = plain_inputs(), linear()
    losses = Focal(gamma=3.0).wrap_sample_loss(cross_entropies, context_of(Focal()))(model, inputs)
    p = model(inputs.x).softmax(dim=1)[torch.arange(N), inputs.labels]
    torch.testing.assert_close(losses, -((1 - p) ** 3) * p.log(), rtol=1e-4, atol=1e-6)


def test_the_squared_error_is_that_of_one_hot_labels_and_its_share_is_mixed_in():
    inputs, model = plain_inputs(), linear()
    squared, half = (
        MSE(share=share).wrap_sample_loss(cross_entropies, context_of(MSE()))(model, inputs)
        for share in (1.0, 0.5)
    )
    expected = (model(inputs.x) - one_hot(inputs.labels, K)).square().sum(dim=1)
    torch.testing.assert_close(squared, expected)
    torch.testing.assert_close(half, (expected + cross_entropies(model, inputs)) / 2)


def test_adjusted_logits_are_trained_on_and_not_predicted_by():
    inputs, model, choice = plain_inputs(), linear(), LogitAdjustment(tau=2.0, rho=100.0)
    context = context_of(choice)
    shares = 100.0 ** (-torch.arange(K) / (K - 1))
    shift = 2 * (shares / shares.sum()).log()
    losses = choice.wrap_sample_loss(cross_entropies, context)(model, inputs)
    expected = cross_entropy(model(inputs.x) + shift, inputs.labels, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    on_test = build_prediction(model, [(choice, context)], "test")(inputs.x)
    on_train = build_prediction(model, [(choice, context)], "train")(inputs.x)
    torch.testing.assert_close(on_test, model(inputs.x))
    torch.testing.assert_close(on_train, model(inputs.x) + shift)


def test_logits_adjusted_after_training_are_predicted_by_in_tests_only():
    inputs, model, choice = plain_inputs(), linear(), LogitAdjustmentPostHoc(tau=1.0)
    context = context_of(choice)
    on_test = build_prediction(model, [(choice, context)], "test")(inputs.x)
    torch.testing.assert_close(on_test, model(inputs.x) - context.state["log_shares"])
    assert torch.equal(
        build_prediction(model, [(choice, context)], "train")(inputs.x), model(inputs.x)
    )
    assert choice.wrap_sample_loss(cross_entropies, context) is cross_entropies


def test_the_gradient_penalty_is_half_the_squared_pixel_gradient():
    inputs, model = plain_inputs(torch.float64), linear().double()
    context = context_of(GradientPenalty())
    losses = GradientPenalty(strength=3.0).wrap_sample_loss(cross_entropies, context)(model, inputs)
    p = model(inputs.x).softmax(dim=1) - inputs.targets
    slopes = (p @ model[1].weight).reshape(inputs.x.shape) / context.deviation
    expected = cross_entropies(model, inputs) + 3 / 2 * slopes.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected)


def attacked_x(choice, inputs, model, context):
    """The images on which the last loss is taken."""
    seen = []

    def losses(forward, inputs):
        seen.append(inputs.x.detach())
        return cross_entropies(forward, inputs)

    found = choice.wrap_sample_loss(losses, context)(model, inputs)
    return seen, found


def smooth_inputs(context):
    """Images of middle grey, far from the ends of the range."""
    inputs = plain_inputs()
    x = (0.5 + 0.1 * (inputs.x - 0.5) - context.normalise.mean[:, None, None]) / context.deviation
    return replace(inputs, x=x)


def test_fgm_moves_each_image_by_epsilon_along_its_gradient():
    context, model = context_of(FGM()), linear()
    inputs = smooth_inputs(context)
    seen, losses = attacked_x(FGM(epsilon=0.3), inputs, model, context)
    shift = (seen[-1] - inputs.x) * context.deviation
    torch.testing.assert_close(shift.flatten(1).norm(dim=1), torch.full((N,), 0.3))
    p = model(inputs.x).softmax(dim=1) - inputs.targets
    slopes = (p @ model[1].weight).reshape(inputs.x.shape) / context.deviation
    cosines = torch.cosine_similarity(shift.flatten(1), slopes.flatten(1))
    torch.testing.assert_close(cosines, torch.ones(N))
    assert (losses > cross_entropies(model, inputs)).all()


def test_fgsm_moves_every_pixel_by_epsilon():
    context, model = context_of(FGSM()), linear()
    inputs = smooth_inputs(context)
    seen, _ = attacked_x(FGSM(epsilon=0.03), inputs, model, context)
    shift = (seen[-1] - inputs.x) * context.deviation
    torch.testing.assert_close(shift.abs(), torch.full_like(shift, 0.03), rtol=1e-3, atol=1e-5)


def test_pgd_stays_within_epsilon_and_in_the_range_of_pixels():
    context, model, inputs = context_of(PGD()), linear(), plain_inputs()
    low, high = (
        (edge - context.normalise.mean[:, None, None]) / context.deviation for edge in (0.0, 1.0)
    )
    inputs = replace(inputs, x=low + inputs.x / context.deviation)
    seen, losses = attacked_x(PGD(epsilon=0.05, move_size=0.02, n_moves=5), inputs, model, context)
    shift = (seen[-1] - inputs.x) * context.deviation
    assert len(seen) == 6
    assert float(shift.abs().max()) <= 0.05 + 1e-5
    assert ((seen[-1] >= low) & (seen[-1] <= high)).all()
    assert ((inputs.x + 0.03 / context.deviation > high) & (seen[-1] == high)).any()
    assert losses.mean() > cross_entropies(model, inputs).mean()


def test_vat_adds_the_divergence_in_a_direction_that_matters():
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, K))
    model, choice = nn.Sequential(*layers), VAT(epsilon=0.5, n_moves=3)
    context, seen = context_of(choice, model), []
    inputs = smooth_inputs(context)

    def forward(x):
        seen.append(x.detach())
        return model(x)

    added = choice.wrap_sample_loss(cross_entropies, context)(forward, inputs)
    added = added - cross_entropies(model, inputs)
    shift = (seen[-1] - inputs.x) * context.deviation
    torch.testing.assert_close(shift.flatten(1).norm(dim=1), torch.full((N,), 0.5))

    def divergence(shift):
        p, q = (model(inputs.x + s).softmax(dim=1) for s in (0, shift / context.deviation))
        return (p * (p / q).log()).sum(dim=1)

    torch.testing.assert_close(added, divergence(shift), rtol=1e-2, atol=1e-5)
    noise = torch.randn_like(shift)
    noise *= 0.5 / noise.flatten(1).norm(dim=1)[:, None, None, None]
    assert (added > 3 * divergence(noise)).float().mean() > 0.9


def test_a_small_attack_is_a_gradient_penalty():
    """grad l(x + s g) = grad (l + s/2 ||g||^2) for small s, in a smooth model."""
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, K))
    model, strength = nn.Sequential(*layers).double(), 1e-3
    context = context_of(FGM(), model)
    inputs = smooth_inputs(context).rows(slice(1))
    inputs = replace(inputs, x=inputs.x.double(), targets=inputs.targets.double())

    def slopes(losses):
        found = torch.autograd.grad(losses(model, inputs).sum(), list(model.parameters()))
        return torch.cat([slope.flatten() for slope in found])

    x = inputs.x.clone().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropies(model, replace(inputs, x=x)).sum(), x)
    size = float((g / context.deviation).norm())
    choices = FGM(epsilon=strength * size), GradientPenalty(strength=strength)
    plain = slopes(cross_entropies)
    attack, penalty = (
        slopes(choice.wrap_sample_loss(cross_entropies, context)) - plain for choice in choices
    )
    torch.testing.assert_close(attack, penalty, rtol=0, atol=0.01 * float(penalty.norm()))


# ---------------------------------------------------------------- the gradient and the update


def test_l2_is_the_weight_decay_of_sgd_on_weights(toy_data):
    decaying = replace(ONE_STEP, optimizer=SGD(lr=0.05, weight_decay=0.1))
    by_optimizer = few_steps(toy_data, recipe=decaying)[0].model
    by_choice = few_steps(toy_data, L2(strength=0.1), recipe=ONE_STEP)[0].model
    for one, other in zip(*map(weight_tensors, (by_optimizer, by_choice)), strict=True):
        torch.testing.assert_close(one, other)


def test_decoupled_weight_decay_is_that_of_adamw_on_weights(toy_data):
    plain = replace(ONE_STEP, optimizer=AdamW(lr=0.01))
    decaying = replace(plain, optimizer=AdamW(lr=0.01, weight_decay=0.3))
    by_optimizer = few_steps(toy_data, recipe=decaying)[0].model
    by_choice = few_steps(toy_data, WeightDecay(strength=0.3), recipe=plain)[0].model
    for one, other in zip(*map(weight_tensors, (by_optimizer, by_choice)), strict=True):
        assert torch.equal(one, other)


def test_l1_pushes_every_weight_towards_zero_alike(toy_data):
    _, plain = one_update(toy_data)
    before, pushed = one_update(toy_data, L1(strength=0.1))
    for b, p, q in zip(before, plain, pushed, strict=True):
        push = -0.05 * 0.1 * b.sign() if b.dim() > 1 else torch.zeros_like(b)
        torch.testing.assert_close(q - p, push, rtol=1e-3, atol=1e-6)


def test_weissi_does_not_change_when_layers_trade_scale_and_l2_does():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(5, 4, dtype=torch.float64)) for _ in range(3)]
    scaled = [nn.Parameter(g * w.detach()) for g, w in zip((3, 0.5, 1 / 1.5), weights, strict=True)]
    for choice in (WEISSI(log_norm=1.0, direction=0.0), WEISSI(log_norm=0.0, direction=1.0)):
        torch.testing.assert_close(
            choice.penalty(weights), choice.penalty(scaled), rtol=1e-14, atol=0
        )
    assert L2().penalty(scaled) > 1.5 * L2().penalty(weights)


def test_weissi_decays_a_layer_by_its_squared_norm():
    weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    WEISSI(log_norm=0.7, direction=0.0).penalty([weight]).backward()
    torch.testing.assert_close(weight.grad, (0.7 * weight / weight.square().sum()).detach())


class Quadratic(nn.Module):
    """w^T A w / 2 of two weights."""

    A = torch.diag(torch.tensor([1.0, 10.0]))

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -0.4]))

    def gradient(self, inputs):
        loss = self.w @ self.A @ self.w / 2
        loss.backward()
        return Gradient(loss.detach(), torch.zeros(0))


def test_sam_takes_the_gradient_uphill_and_goes_back():
    model = Quadratic()
    w = model.w.detach().clone()
    SAM(rho=0.1).wrap_gradient(model.gradient, context_of(SAM(), model))(None)
    g = Quadratic.A @ w
    torch.testing.assert_close(model.w.grad, Quadratic.A @ (w + 0.1 * g / g.norm()))
    assert torch.equal(model.w.detach(), w)


def test_weight_noise_is_there_for_the_gradient_and_then_gone():
    model = linear()
    context, seen = context_of(WeightNoise(), model), []
    before = model[1].weight.detach().clone()

    def gradient(inputs):
        seen.append(model[1].weight.detach().clone())
        return Gradient(torch.zeros(()), torch.zeros(0))

    WeightNoise(scale=0.1).wrap_gradient(gradient, context)(None)
    noise = seen[0] - before
    assert float(noise.std() / before.square().mean().sqrt()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(model[1].weight.detach(), before)


def test_dropout_drops_features_in_training_only():
    model, choice = linear(), Dropout(p=0.25)
    context, inputs, seen = context_of(choice, model), plain_inputs(), []
    model[1].register_forward_pre_hook(lambda _, x: seen.append(x[0].detach().clone()))

    def gradient(inputs):
        model(inputs.x)
        return Gradient(torch.zeros(()), torch.zeros(0))

    names = list(model.state_dict())
    choice.wrap_gradient(gradient, context)(inputs)
    model.eval()
    model(inputs.x)
    kept = seen[0] != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(seen[0][kept], seen[1][kept] / 0.75)
    assert torch.equal(seen[1], inputs.x.flatten(1))
    assert names == ["1.weight", "1.bias"]


def test_a_model_without_a_linear_layer_has_no_dropout():
    with pytest.raises(ValueError, match="no linear layer"):
        context_of(Dropout(), nn.Conv2d(3, 3, 1))


# ---------------------------------------------------------------- metrics


def test_the_robust_error_is_the_error_without_an_attack_and_rises_with_it():
    from bootstrap.interventions import Scored

    batch, model = batch_of(), linear()
    context = context_of(RobustError(), model)
    logits = model(context.normalise(batch.images.float() / 255))
    predicted = logits.argmax(dim=1)
    labels = torch.where(torch.arange(N) < 12, predicted, (predicted + 1) % K)  # 4 of 16 are wrong
    known = {"images": batch.images, "labels": labels, "logits": logits, "predicted": predicted}
    scored = Scored(**known, ids=batch.ids)
    errors = [
        RobustError(epsilon=e, move_size=e / 4).measure(scored, context)["test_robust_error"]
        for e in (0.0, 0.01, 0.5)
    ]
    assert errors[0] == 0.25
    assert errors[0] < errors[1] < errors[2] == 1.0
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_sample_is_forgotten_when_it_is_wrong_after_it_was_right():
    choice, context = ForgettingEvents(), context_of(ForgettingEvents())
    for right in ([0, 1, 1], [1, 0, 1], [0, 1, 1], [1, 0, 1]):
        choice.count(torch.tensor(right) > 0, torch.tensor([5, 7, 9]), context.state)
    choice.count(torch.tensor([False]), torch.tensor([11]), context.state)
    assert context.state["n_forgotten"][[5, 7, 9, 11]].tolist() == [1, 2, 0, 0]
    assert choice.measure(None, context) == {
        "forgetting_events": 3 / 4,
        "never_learned_fraction": 1 / 4,
        "unforgettable_fraction": 1 / 4,
    }


def test_flips_are_counted_between_evaluations():
    from bootstrap.interventions import Scored

    def scored(right):
        labels = torch.zeros(len(right), dtype=torch.int64)
        predicted, ids = 1 - torch.tensor(right), np.arange(len(right))
        known = {"images": labels, "labels": labels, "logits": labels, "predicted": predicted}
        return Scored(**known, ids=ids)

    choice, context = ProbeFlips(), context_of(ProbeFlips())
    for right in ([0, 1, 1], [1, 1, 0], [1, 1, 1]):
        choice.observe(scored(right), scored(right[:2]), context)
    last = scored([1, 1, 1, 1, 1])  # more images at the end than on the curve
    choice.observe(last, None, context)
    assert choice.measure(last, context) == {"test_flips": 1.0}
    assert choice.measure_probe(scored([1]), context) == {"flips": 1.0}
    assert choice.measure_probe(scored([1, 1]), context) == {"flips": 0.5}
