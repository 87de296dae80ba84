"""A local diffusers pipeline as a source: the same images as diffusers draws, keyed by id."""

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from bootstrap.errors import ConfigurationError, DataError
from bootstrap.models import MLP
from bootstrap.shards import read_manifest
from generators.build import build_labelling, build_source
from generators.label import write_teacher
from generators.pipeline import PipelineSpec
from generators.sample import noise_of_ids
from generators.write import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "tiny-ddpm"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=8,
            layers_per_block=1,
        )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = MLP(width=4, depth=1)
    card = {
        "model": "mlp(width=4, depth=1)",
        "image_shape": (8, 8, 3),
        "n_classes": 10,
        "mean": (0.5,) * 3,
        "deviation": (0.25,) * 3,
    }
    write_teacher(path, model.build((8, 8, 3), 10), card)
    return path


@pytest.fixture
def source(folder, flags):
    return PipelineSpec(folder=str(folder), n_steps=3).build(flags)


def ask(ids):
    return np.asarray(ids), np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)


def test_images_are_those_of_diffusers_own_ddim_from_the_same_noise(source, folder):
    ids, zeros, _ = ask([4, 7])
    noise = torch.from_numpy(noise_of_ids(ids, zeros, (8, 8, 3), seed=0))
    unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).eval()
    pipeline = DDIMPipeline(unet=unet, scheduler=DDIMScheduler.from_config(DDPMScheduler().config))
    pipeline.set_progress_bar_config(disable=True)
    import diffusers.pipelines.ddim.pipeline_ddim as module

    original = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: noise
    try:
        expected = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
    finally:
        module.randn_tensor = original
    got = source.sample(ids, zeros, zeros)
    assert np.abs(got / 255 - expected).max() <= 0.51 / 255 + 1e-4


def test_an_image_depends_on_its_id_alone(source):
    together, alone = source.sample(*ask([1, 2, 3])), source.sample(*ask([3]))
    np.testing.assert_array_equal(together[2:], alone)
    assert (together[0] != together[1]).any()


def test_labels_cannot_be_conditions_of_a_source_without_classes(source, tmp_path):
    with pytest.raises(ConfigurationError, match="--labels teacher"):
        generate(source, tmp_path / "data", {"test": 4})
    assert not (tmp_path / "data").exists()


def test_a_folder_without_safetensors_is_refused_with_the_remedy(tmp_path, flags):
    with pytest.raises(DataError, match="safe_serialization=True"):
        build_source(f"pipeline(folder={str(tmp_path)!r})", tmp_path, flags)


def test_a_teacher_labels_what_a_pipeline_draws(source, folder, flags, tmp_path, teacher_file):
    labelling = build_labelling("teacher", teacher_file, flags)
    manifest = generate(source, tmp_path / "data", {"test": 20, "reference": 20}, labelling)
    assert manifest.n("test") == 20
    assert manifest.label_source == "teacher"


def test_the_command_draws_from_a_pipeline_and_lets_the_teacher_label(
    deep_bootstrap, folder, teacher_file, tmp_path, monkeypatch
):
    monkeypatch.setitem(PipelineSpec.__init__.__kwdefaults__, "n_steps", 1)  # 50 take a minute
    words = ("generate", "--preset", "smoke", "--pipeline", folder, "--teacher", teacher_file)
    plain = ("--compile", "off", "--precision", "fp32", "--threads", "1")
    code, _, err = deep_bootstrap(*words, "--out", tmp_path, *plain)
    assert code == 0, err
    manifest = read_manifest(tmp_path / "tiny-ddpm")
    assert manifest.generator["source"] == "pipeline"
    assert manifest.label_source == "teacher"


def test_a_pipeline_and_another_source_exit_2(deep_bootstrap, folder):
    code, _, err = deep_bootstrap("generate", "--pipeline", folder, "--source", "toy(side=8)")
    assert (code, err) == (2, "deep-bootstrap: --pipeline and --source: give one of them\n")
