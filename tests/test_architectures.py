"""The paper's architectures: published sizes, one golden step each, any small image."""

import logging
import sys

import pytest
import torch
from test_models import build, waves
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import ResNet18_Weights, ResNet34_Weights, ResNet50_Weights

from bootstrap.errors import ConfigurationError
from bootstrap.models import MODELS, Darts, PreActResNet18, ResNet18K
from bootstrap.models.darts import build_darts
from bootstrap.models.genotype import (
    OPERATIONS,
    draw_genotype,
    format_genotype,
    live_edges,
    parse_genotype,
)
from bootstrap.models.vgg import build_vgg
from bootstrap.optimizers import SGD
from bootstrap.spec import format_spec, parse_spec

CIFAR = (32, 32, 3)
IMAGENET = (224, 224, 3)
STEM_SAVES = 64 * 3 * (7 * 7 - 3 * 3)  # weights of an ImageNet stem over a CIFAR stem's
CELL = "|sep_conv_3x3~0|+|max_pool_3x3~0|dil_conv_5x5~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
OTHER_CELL = "|none~0|+|sep_conv_5x5~0|none~1|+|dil_conv_3x3~0|sep_conv_3x3~1|skip_connect~2|"
NO_WEIGHTS = "|skip_connect~0|+|avg_pool_3x3~0|none~1|+|max_pool_3x3~0|none~1|skip_connect~2|"

GOLDEN_LOSSES = {
    "resnet18k(width=4, pre_activation=False)": 2.259721,
    "resnet34k(width=4)": 2.117979,
    "resnet50k(width=2)": 2.352463,
    "resnet50k(width=2, pre_activation=False)": 2.294816,
    "wrn(depth=10, widen=1)": 2.267880,
    "vgg11_bn(width=4)": 2.295507,
    "alexnet(width=8)": 2.381252,
    "densenet(depth=10, growth=4)": 2.326781,
    "dconv(width=2)": 2.053559,
    "dfc(width=2)": 2.122503,
    "sconv(width=4)": 2.175197,
    f"darts(genotype={CELL!r}, cells=1, width=4)": 2.328326,
    f"darts(genotype={OTHER_CELL!r}, cells=1, width=4)": 2.321856,
    "vit(width=16, depth=2, heads=2)": 2.318155,
    "pixel_transformer(width=16, depth=2, heads=2)": 2.315305,
}
SHAKES = {"alexnet(width=8)": 0.2}  # without norms a signal fades, and the loss would tell little
SHAPED = (
    *GOLDEN_LOSSES,
    "wrn(depth=10, widen=2)",
    "mcnn(width=4)",
    "mlp(width=16)",
    "timm(name='test_resnet')",
)


def model(text):
    return parse_spec(text, MODELS, "model")


def n_parameters(built):
    return sum(p.numel() for p in built.parameters())


def on_meta(text, image_shape=CIFAR, n_classes=10):
    with torch.device("meta"):
        return model(text).build(image_shape, n_classes)


def shaken(module, by=0.05):
    """Every parameter moved a little: a head that starts at zero would hide what is before it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * waves(parameter.numel(), 1, 1).reshape(parameter.shape)
    return module


@pytest.mark.parametrize(
    ("text", "published", "source"),
    [
        ("resnet18k(pre_activation=False)", 11_173_962, "arXiv 2306.16869, table 7"),
        ("resnet50k(pre_activation=False)", 23_520_842, "arXiv 2306.16869, table 7"),
        ("vgg11_bn", 9_231_114, "arXiv 2306.16869, table 7"),
        ("dfc", 1.17e9, "32 base channels, from the layer sizes of Neyshabur 2020, figure 1"),
        ("wrn28_10", 36.5e6, "Zagoruyko and Komodakis 2016, table 4"),
        ("wrn(depth=16, widen=8)", 11.0e6, "Zagoruyko and Komodakis 2016, table 4"),
        ("wrn(depth=40, widen=4)", 8.9e6, "Zagoruyko and Komodakis 2016, table 4"),
        ("alexnet", 2.47e6, "README of bearpaw/pytorch-classification, the paper's AlexNet"),
        ("densenet(depth=100)", 7.0e6, "Huang et al. 2017, table 2; a stem of 16"),
        ("pixel_transformer(width=512, depth=24, heads=8)", 76e6, "Chen et al. 2020, iGPT-S"),
    ],
)
def test_a_model_has_as_many_parameters_as_published(text, published, source):
    digits = 1e-9 if isinstance(published, int) else 0.015
    assert n_parameters(on_meta(text)) == pytest.approx(published, rel=digits), source


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("resnet18k(pre_activation=False)", ResNet18_Weights.IMAGENET1K_V1),
        ("resnet34k(pre_activation=False)", ResNet34_Weights.IMAGENET1K_V1),
        ("resnet50k(pre_activation=False)", ResNet50_Weights.IMAGENET1K_V1),
    ],
    ids=str,
)
def test_but_for_the_stem_a_resnet_has_torchvisions_size(text, weights):
    built = on_meta(text, IMAGENET, 1_000)
    assert n_parameters(built) + STEM_SAVES == weights.meta["num_params"]


def test_vgg_19_of_the_same_table_has_the_published_size():
    with torch.device("meta"):
        built = build_vgg(CIFAR, 10, 64, "E")
    assert n_parameters(built) == 20_040_522  # arXiv 2306.16869, table 7


def test_vit_b_16_has_the_published_size():
    built = on_meta("vit(patch=16)", IMAGENET, 1_000)
    assert n_parameters(built) == 86_567_656  # timm's results table: 86.57 M


def test_a_cell_without_weights_leaves_the_size_of_nas_bench_201s_skeleton():
    with torch.device("meta"):
        built = build_darts(3, 10, parse_genotype(NO_WEIGHTS), cells=5, width=16)
    assert n_parameters(built) == 73_306  # 0.073306 M in its tables


@pytest.mark.parametrize(
    ("name", "general"),
    [
        ("wrn28_10", "wrn(depth=28, widen=10)"),
        ("densenet40_12", "densenet(depth=40, growth=12)"),
        ("densenet40_32", "densenet(depth=40, growth=32)"),
    ],
)
def test_a_name_with_sizes_is_the_general_model_at_those_sizes(name, general):
    ours, other = on_meta(name).state_dict(), on_meta(general).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in other.items()}


@pytest.mark.parametrize("text", ["wrn28_10(depth=16)", "densenet40_12(growth=24)"])
def test_a_name_with_sizes_takes_no_other_ones(text):
    with pytest.raises(ConfigurationError, match="unexpected keyword argument"):
        model(text)


def test_resnet18k_is_the_preactivation_resnet_of_its_width():
    ours = build(ResNet18K(width=4)).state_dict()
    other = build(PreActResNet18(width=4)).state_dict()
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[key], other[key]) for key in ours)


@pytest.mark.parametrize("text", GOLDEN_LOSSES)
def test_one_step_of_sgd_leads_to_the_golden_loss(text):
    assert loss_after_a_step(text) == pytest.approx(GOLDEN_LOSSES[text], abs=1e-4)


def loss_after_a_step(text):
    module = shaken(build(model(text), (16, 16, 3)), SHAKES.get(text, 0.05))
    optimizer = SGD(lr=0.02).build(module.parameters())
    x, labels = waves(16, side=16), torch.arange(16) % 10
    cross_entropy(module(x), labels).backward()
    optimizer.step()
    return cross_entropy(module(x), labels).item()


@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("text", SHAPED)
def test_a_model_takes_small_images_of_one_and_three_channels(text, channels, side):
    built = build(model(text), (side, side, channels), n_classes=7)
    assert built(waves(2, side, channels)).shape == (2, 7)


@pytest.mark.parametrize("text", [text for text in SHAPED if "vit" not in text])
def test_a_model_takes_images_of_an_odd_side_that_are_not_square(text):
    x = waves(2, 13)[:, :, :9]
    assert build(model(text), (9, 13, 3))(x).shape == (2, 10)


@pytest.mark.parametrize("text", SHAPED)
def test_the_memory_format_does_not_change_what_a_model_computes(text):
    module, x = shaken(build(model(text))).eval(), waves(4)
    with torch.no_grad():
        expected = module(x)
        module = module.to(memory_format=torch.channels_last)
        for images in (x, x.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", SHAPED)
def test_a_model_runs_in_bf16(text):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = build(model(text))(waves(4))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("text", SHAPED)
def test_every_parameter_gets_a_gradient(text):
    module = shaken(build(model(text)))
    cross_entropy(module(waves(16)), torch.arange(16) % 10).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("text", SHAPED)
def test_no_model_draws_random_numbers_when_it_runs(text):
    module, before = build(model(text)), torch.get_rng_state()
    module(waves(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("darts", "timm")])
def test_a_name_parses_and_formats_back(name):
    assert format_spec(model(name), MODELS) == name


@pytest.mark.parametrize("text", SHAPED)
def test_arguments_parse_and_format_back(text):
    assert format_spec(model(text), MODELS) == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("wrn(depth=27)", "must be 6n \\+ 4"),
        ("densenet(depth=41)", "must be 3n \\+ 4"),
        ("resnet50k(width=0)", "must be at least 1"),
        ("vit(width=10, heads=3)", "must be a multiple of heads=3"),
        ("pixel_transformer(levels=1)", "must be at least 2"),
        ("timm", "missing 1 required keyword-only argument: 'name'"),
    ],
)
def test_a_size_that_cannot_be_is_refused(text, rule):
    with pytest.raises(ValueError, match=rule):
        model(text)


@pytest.mark.parametrize("text", ["mcnn", "densenet40_12"])
def test_images_too_small_to_be_pooled_are_refused(text):
    with pytest.raises(ValueError, match=r"takes images of 8 px and more, not 7x32"):
        on_meta(text, (7, 32, 3))


def test_dfc_subsumes_dconv():
    convolutional, dense = (build(model(f"{name}(width=2)")).eval() for name in ("dconv", "dfc"))
    x, wide = waves(3), (3, 8, 8)
    weights = iter(layer for layer in dense if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for layer in convolutional:
            if isinstance(layer, nn.Conv2d):
                n_in = wide[0] * wide[1] * wide[2]
                outputs = layer(torch.eye(n_in).reshape(n_in, *wide))
                next(weights).weight.copy_(outputs.flatten(1).T)
                wide = outputs.shape[1:]
            elif isinstance(layer, nn.Linear):
                next(weights).load_state_dict(layer.state_dict())
        torch.testing.assert_close(dense(x), convolutional(x), rtol=1e-4, atol=1e-5)


def test_a_seed_draws_the_golden_architecture():
    genotype = (
        "|dil_conv_5x5~0|+|none~0|skip_connect~1|+|dil_conv_3x3~0|dil_conv_3x3~1|dil_conv_5x5~2|"
    )
    expected = f"darts(seed=3, genotype={genotype!r}, cells=5, width=64)"
    assert format_spec(Darts(seed=3), MODELS) == expected


def test_the_text_of_a_drawn_architecture_names_it_wholly():
    drawn = Darts(seed=11)
    text = format_spec(drawn, MODELS)
    assert model(text) == drawn
    assert text.endswith(f"genotype={drawn.genotype!r}, cells={drawn.cells}, width={drawn.width})")
    assert parse_genotype(drawn.genotype) == draw_genotype(11)


def test_seeds_draw_every_operation_and_size_and_only_cells_with_a_path():
    drawn = [Darts(seed=seed) for seed in range(100)]
    genotypes = [parse_genotype(value.genotype) for value in drawn]
    assert {name for genotype in genotypes for node in genotype for name in node} == {*OPERATIONS}
    assert {(value.cells, value.width) for value in drawn} == {(1, 16), (1, 64), (5, 16), (5, 64)}
    assert all(live_edges(genotype) for genotype in genotypes)
    assert len({*genotypes}) == 100


def test_a_cell_shows_its_genotype():
    genotype = draw_genotype(0)
    assert format_genotype(genotype) in str(build_darts(3, 10, genotype, cells=1, width=2))


def test_edges_that_cannot_change_the_output_are_left_out():
    edges = live_edges(parse_genotype(OTHER_CELL))
    assert edges == (
        (2, 0, "sep_conv_5x5"),
        (3, 0, "dil_conv_3x3"),
        (3, 2, "skip_connect"),
    )


@pytest.mark.parametrize(
    ("genotype", "rule"),
    [
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "no path from its input"),
        ("|none~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|", "no path from its input"),
        ("|conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|", "unknown operation 'conv_3x3'"),
        ("|skip_connect~0|", "must be written"),
        ("|skip_connect~0|+|none~1|none~0|+|none~0|none~1|none~2|", "must be written"),
    ],
)
def test_a_genotype_that_cannot_be_is_refused(genotype, rule):
    with pytest.raises(ConfigurationError, match=rule):
        Darts(genotype=genotype)


def test_patches_that_do_not_tile_the_image_are_refused():
    with pytest.raises(ValueError, match="32x30 px are not tiled by patch=4; choose a divisor"):
        on_meta("vit", (32, 30, 3))


@pytest.mark.parametrize("text", ["vit", "timm(name='resnet18')"])
def test_without_timm_one_line_says_what_to_install(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'deep-bootstrap\[timm\]'"):
        on_meta(text)


@pytest.mark.parametrize("name", ["resnet1 8", "hf-hub:someone/model", "resnet18.a1_in1k"])
def test_timm_is_asked_for_architectures_only(name):
    with pytest.raises(ConfigurationError, match=r"timm has no architecture"):
        on_meta(f"timm(name={name!r})")


def test_a_mistyped_name_of_timms_gets_a_suggestion():
    with pytest.raises(ConfigurationError, match="did you mean 'convnext_tiny'"):
        on_meta("timm(name='convnext_tyni')")


def test_a_model_of_timms_that_cannot_take_the_image_is_refused():
    with pytest.raises(ConfigurationError, match="'inception_v3' cannot take 8x8x3"):
        on_meta("timm(name='inception_v3')", (8, 8, 3))


def test_a_model_of_timms_with_dropout_is_refused():
    with pytest.raises(ConfigurationError, match="'ghostnet_100' has dropout"):
        on_meta("timm(name='ghostnet_100')")


def test_an_imagenet_stem_on_small_images_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        on_meta("timm(name='resnet18')")
    assert "timm model 'resnet18' has an ImageNet stem: 32x32 images are 1 px" in caplog.text


def test_the_palette_has_512_colours_that_normal_pixels_use_equally():
    palette = build(model("pixel_transformer"), CIFAR)[0]
    x = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    counts = palette(x).flatten().bincount()
    assert len(counts) == 512
    assert (counts / 400 - 1).abs().max() < 0.25  # 5 standard deviations of a count of 400


def test_a_colour_tells_the_octile_of_each_channel():
    palette = build(model("pixel_transformer"), CIFAR)[0]
    pixels = torch.tensor([[-9.0, -9, -9], [9, -9, -9], [-9, 9, -9], [0.1, -0.1, 9]])
    assert palette(pixels.T[None, :, None]).tolist() == [[0, 7, 56, 4 + 8 * 3 + 64 * 7]]


def test_a_pixel_changes_nothing_that_is_read_before_it():
    features = build(model("pixel_transformer(width=16, depth=2, heads=2)"))[:-2]
    x, at = waves(1), 20
    changed = x.clone()
    changed.flatten(2)[:, :, at] += 3
    with torch.no_grad():
        differs = (features(x) != features(changed)).any(dim=2)[0]
    assert differs.nonzero()[0].item() == at + 1
