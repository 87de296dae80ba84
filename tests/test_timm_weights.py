"""ImageNet weights of timm from a local file: resampled, normalised, refused; never downloaded."""

import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_paired import FLAGS
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import VisionTransformer
from tiny_pair import PLAIN, TINY

from bootstrap.errors import ConfigurationError, DataError
from bootstrap.models import MLP, Timm, ViT
from bootstrap.pretrained import read_pretrained
from bootstrap.pretraining import convert
from bootstrap.shards import read_manifest
from bootstrap.timm_weights import TimmWeights, fold_normalisation
from bootstrap.train import build_state
from generators.toy import ToySource
from generators.write import generate

NAME = "vit_tiny_patch16_224"  # whose normalisation is 0.5, 0.5
SMALL = replace(TINY, model=ViT(patch=4, width=16, depth=2, heads=2))


def imagenet_vit(side, patch, depth=2):
    """A vision transformer of 1000 classes, as timm would save it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=side, patch_size=patch, embed_dim=16, depth=depth, num_heads=2
        )
        torch.nn.init.normal_(model.patch_embed.proj.bias)
    return model.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    generate(ToySource(side=32), folder, {"test": 64, "reference": 64, "stream": 1_024})
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights for 224 px in patches of 16."""
    path = tmp_path_factory.mktemp("timm") / "vit.safetensors"
    save_file(imagenet_vit(224, 16).state_dict(), path)
    return path


def weights(file, **options):
    return TimmWeights(name=NAME, file=str(file), **options)


def unnormalised(data):
    """The manifest of a data set with the normalisation that the weights expect."""
    return replace(read_manifest(data), mean=(0.5,) * 3, deviation=(0.5,) * 3)


def test_embeddings_are_resampled_as_timm_does_and_all_else_is_kept(data, file):
    source = imagenet_vit(224, 16).state_dict()
    model, told = weights(file).fit(SMALL.model, unnormalised(data))
    found = model.state_dict()
    positions = resample_abs_pos_embed(source["pos_embed"], (8, 8), num_prefix_tokens=1)
    patches = resample_patch_embed(source["patch_embed.proj.weight"], [4, 4])
    torch.testing.assert_close(found["pos_embed"], positions)
    torch.testing.assert_close(found["patch_embed.proj.weight"], patches)
    others = [name for name in found if "embed" not in name and not name.startswith("head")]
    assert len(others) == 2 * 12 + 2 + 1  # blocks, norm, class token
    assert all(torch.equal(found[name], source[name]) for name in others)
    assert told["resampled"] == ["patch_embed.proj.weight", "pos_embed"]


def test_weights_see_the_pixels_they_were_trained_on_whatever_the_data_sets_normalisation(
    data, tmp_path
):
    source, manifest = imagenet_vit(32, 4), read_manifest(data)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    model, _ = weights(tmp_path / "vit.safetensors").fit(SMALL.model, manifest)
    pixels = torch.sin(torch.arange(2 * 3 * 32 * 32.0)).reshape(2, 3, 32, 32).abs()
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (manifest.mean, manifest.deviation))
    with torch.no_grad():
        expected = source.forward_features((pixels - 0.5) / 0.5)
        found = model.eval().forward_features((pixels - mean) / deviation)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (manifest.mean, manifest.deviation) != ((0.5,) * 3, (0.5,) * 3)


def test_both_worlds_start_from_them(data, file, tmp_path):
    path = convert(SMALL, weights(file), data, tmp_path / "w.safetensors")
    init = read_pretrained(path)
    model = build_state(SMALL, read_manifest(data), 1_024, 0, FLAGS, init=init).model
    assert torch.equal(model.pos_embed, init.tensors["pos_embed"])
    assert not model.head.weight.any()
    assert init.card["method"] == "timm"
    assert init.card["source"]["file"] == "vit.safetensors"
    assert len(init.card["source"]["sha256"]) == 64


def test_a_pickle_of_tensors_is_read(data, file, tmp_path):
    torch.save(imagenet_vit(224, 16).state_dict(), tmp_path / "vit.pth")
    found, _ = weights(tmp_path / "vit.pth").fit(SMALL.model, read_manifest(data))
    expected, _ = weights(file).fit(SMALL.model, read_manifest(data))
    assert torch.equal(found.pos_embed, expected.pos_embed)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("here",)


def test_a_pickle_of_code_is_refused_and_not_run(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit.pth").write_bytes(pickle.dumps({"pos_embed": Hostile()}))
    with pytest.raises(DataError, match=r"vit\.pth"):
        weights("vit.pth").fit(SMALL.model, read_manifest(data))
    assert not (tmp_path / "here").exists()


def test_a_file_of_other_bytes_is_refused(data, tmp_path):
    (tmp_path / "vit.safetensors").write_bytes(b"not tensors")
    with pytest.raises(DataError, match="not a file of tensors"):
        weights(tmp_path / "vit.safetensors").fit(SMALL.model, read_manifest(data))


def test_a_missing_file_is_refused(data, tmp_path):
    with pytest.raises(ConfigurationError, match="there is no such file"):
        weights(tmp_path / "none").fit(SMALL.model, read_manifest(data))


def test_weights_of_another_depth_are_refused_by_the_names_of_their_tensors(data, file):
    deeper = ViT(patch=4, width=16, depth=3, heads=2)
    with pytest.raises(ConfigurationError, match=r"blocks\.2\.norm1\.weight is missing.* 9 more"):
        weights(file).fit(deeper, read_manifest(data))


def test_weights_of_timm_are_for_models_of_timm(data, file):
    with pytest.raises(ConfigurationError, match="for the models vit and timm"):
        weights(file).fit(MLP(), read_manifest(data))


def test_a_convolutional_model_of_timm_takes_its_weights_as_they_are(data, tmp_path):
    model = Timm(name="test_resnet")
    built = model.build((32, 32, 3), 10)
    save_file(built.state_dict(), tmp_path / "resnet.safetensors")
    found, told = weights(tmp_path / "resnet.safetensors").fit(model, read_manifest(data))
    assert (told["resampled"], told["normalisation_is_folded_in"]) == ([], False)
    assert torch.equal(found.conv1[0].weight, built.conv1[0].weight)


def test_grey_images_are_refused(data, file):
    grey = replace(read_manifest(data), mean=(0.5,), deviation=(0.5,))
    body = {f"patch_embed.proj.{n}": t for n, t in (("weight", torch.ones(1, 3, 1, 1)),)}
    with pytest.raises(ConfigurationError, match="take 3 channels, the images have 1"):
        fold_normalisation(body, (0.5,) * 3, (0.5,) * 3, grey)


@pytest.mark.parametrize("options", [{}, {"file": "vit.safetensors", "download": True}])
def test_nothing_is_downloaded_unasked(options):
    with pytest.raises(ConfigurationError, match="nothing is downloaded unasked"):
        TimmWeights(name=NAME, **options)


def test_the_command_converts_a_local_file(deep_bootstrap, data, file, tmp_path):
    method = f"timm(name='{NAME}', file='{file}')"
    words = ("pretrain", "--preset", "smoke", "--model", "vit(width=16, depth=2, heads=2)")
    words += ("--data", data, "--weights", tmp_path / "w.safetensors", "--method", method)
    for _ in range(2):  # the second finds it there
        code, out, err = deep_bootstrap(*words, *PLAIN)
        assert (code, out) == (0, f"{tmp_path / 'w.safetensors'}\n"), err
