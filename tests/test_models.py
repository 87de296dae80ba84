"""Models have the paper's sizes and take images of any size."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags
from bootstrap.models import MLP, PreActResNet18, SmallCNN
from bootstrap.models.darts import OPERATIONS
from bootstrap.models.grouped import GroupedConv2d, check_convolutions
from bootstrap.optimizers import SGD

TINY = (PreActResNet18(width=4), MLP(width=16, depth=2), SmallCNN(width=4))
GOLDEN_LOSSES = {"PreActResNet18": 2.061098, "MLP": 1.824075, "SmallCNN": 1.685946}


def build(model, image_shape=(8, 8, 3), n_classes=10):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model.build(image_shape, n_classes)


def waves(n, side=8, channels=3):
    """Images without a generator: the same in any version."""
    at = torch.arange(n * channels * side * side, dtype=torch.float64)
    return torch.sin(at**1.5).float().reshape(n, channels, side, side)


def n_parameters(model):
    return sum(p.numel() for p in model.build((32, 32, 3), 10).parameters())


@pytest.mark.parametrize(
    ("model", "millions"), [(PreActResNet18(), 11.17), (MLP(), 14.7), (SmallCNN(), 1.56)], ids=repr
)
def test_a_model_has_as_many_parameters_as_in_the_paper(model, millions):
    assert n_parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("side", [8, 9, 13, 32])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("model", TINY, ids=lambda m: type(m).__name__)
def test_a_model_takes_images_of_any_side_and_channels(model, side, channels):
    logits = build(model, (side, side, channels), n_classes=7)(waves(2, side, channels))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("model", TINY, ids=lambda m: type(m).__name__)
def test_a_model_takes_images_that_are_not_square(model):
    x = waves(2, 12)[:, :, :8]
    assert build(model, (8, 12, 3))(x).shape == (2, 10)


@pytest.mark.parametrize("model", TINY, ids=lambda m: type(m).__name__)
def test_every_parameter_gets_a_gradient(model):
    module = build(model)
    cross_entropy(module(waves(16)), torch.arange(16) % 10).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_an_mlp_without_batch_norm_has_none():
    layers = build(MLP(width=4, depth=2, batch_norm=False)).modules()
    assert not any(isinstance(layer, torch.nn.BatchNorm1d) for layer in layers)


@pytest.mark.parametrize("model", TINY, ids=lambda m: type(m).__name__)
def test_one_step_of_sgd_leads_to_the_golden_loss(model):
    module = build(model)
    optimizer = SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4).build(
        module.parameters()
    )
    x, labels = waves(16), torch.arange(16) % 10
    cross_entropy(module(x), labels).backward()
    optimizer.step()
    loss = cross_entropy(module(x), labels).item()
    assert loss == pytest.approx(GOLDEN_LOSSES[type(model).__name__], abs=1e-4)


@pytest.mark.parametrize("name", ["dil_conv_3x3", "dil_conv_5x5", "sep_conv_3x3"])
def test_a_depthwise_convolution_has_the_gradient_of_float32_in_bf16(name):
    torch.manual_seed(0)
    shape = (8, 16, 32, 32)
    layer = next(m for m in OPERATIONS[name](16).modules() if isinstance(m, GroupedConv2d))
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    upstream, gradients = torch.randn(shape), []
    for is_bf16 in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            y = layer(x)
        (y.float() * upstream).sum().backward()
        gradients.append(layer.weight.grad.clone())
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_model_whose_gradients_would_be_garbage_is_refused_in_bf16():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, dilation=2, groups=4))
    flags = Flags(device="cpu", precision="bf16", compiled=False, n_threads=1)
    with pytest.raises(ConfigurationError, match=r"^1 is a grouped, dilated .* --precision fp32"):
        check_convolutions(model, flags)
    check_convolutions(model, replace(flags, precision="fp32"))
    check_convolutions(OPERATIONS["dil_conv_3x3"](8), flags)
