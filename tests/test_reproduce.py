"""Every figure passes at its smallest scale; the others are checked as far as words go."""

import json

import pytest

from bootstrap.grid import build_options, figure_sweep
from bootstrap.locks import locked
from bootstrap.options import CompareOptions
from bootstrap.presets import PRESETS
from bootstrap.presets.figure import PRESET_OF, SCALES
from bootstrap.presets.figures import FIGURES, build_figure
from bootstrap.runlog import load_runs
from bootstrap.series import about_series, series_of
from generators.toy import ToySource
from generators.write import generate

PLAIN = ("--precision", "fp32", "--compile", "off", "--threads", "1")


def pairs(name, scale):
    return figure_sweep(build_figure(name, scale)).pairs()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The toy images of other tests, and some that no world sees."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    sizes = {"pretrain": 96, "test": 512, "reference": 256, "stream": 2_048}
    generate(ToySource(side=8), folder, sizes)
    return folder


@pytest.fixture
def reproduce(deep_bootstrap, data, tmp_path):
    """Run the command on a smoke figure; returns (exit code, stdout, stderr)."""

    def run(name, *words):
        at = ("--data", data, "--out", tmp_path)
        return deep_bootstrap("reproduce", name, "--scale", "smoke", *at, *PLAIN, *words)

    return run


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_asks_for_pairs_that_fit_their_preset_s_data(name, scale):
    found = pairs(name, scale)
    assert found or build_figure(name, scale).toys
    for pair in found:
        spec = PRESETS[pair.preset]().data
        assert pair.preset == PRESET_OF[scale]
        assert max(pair.recipe.n_draws, *pair.n_samples) <= spec.n_stream or pair.allow_reuse
        assert pair.recipe.every_step is False


@pytest.mark.parametrize("scale", SCALES)
def test_the_ideal_world_of_figure_3_comes_to_the_end_of_its_images(scale):
    n_stream = {"smoke": 4_096, "laptop": 49_152, "paper": 155_000}[scale]  # of the real sets
    for pair in pairs("fig3", scale):
        assert pair.allow_reuse
        assert max(pair.n_samples) < n_stream < pair.recipe.n_draws


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["fig5-pretraining", "vit-pretraining"])
def test_every_start_of_a_figure_is_trained_alike(name, scale):
    figure = build_figure(name, scale)
    first, *others = figure.points
    assert first.init is None
    assert all(point.init is not None for point in others)
    assert {point.pick_lr for point in others} == {first.pick_lr}
    assert all(point.words == first.words for point in others)


def test_the_rate_of_image_gpt_is_the_paper_s():
    (pair,) = pairs("fig5-pretraining", "paper")  # one, as long as no weights are made
    assert pair.n_samples == (2_000,)
    words = pair.recipe.to_json()
    assert words["optimizer"] == "adamw(lr=0.003, betas=(0.9, 0.95))"
    assert (words["schedule"], words["batch_size"]) == ("constant", 128)
    assert words["model"] == "pixel_transformer(width=512, depth=24, heads=8)"


def test_wrong_labels_are_those_of_training_and_test():
    texts = [pair.recipe.to_json().get("choices", []) for pair in pairs("label-noise", "paper")]
    assert texts[0] == []
    assert all("label_noise_train_and_test" in text for (text,) in texts[1:])


def test_figures_of_a_scale_share_their_runs():
    first, second = pairs("fig6-metrics", "laptop"), pairs("n-sweep", "laptop")
    assert first[0].recipe == second[0].recipe == pairs("fig1", "laptop")[0].recipe
    assert set(first[0].n_samples) < set(second[0].n_samples)


def test_the_paper_scale_is_the_paper_s_protocol():
    for pair in pairs("fig1", "paper"):
        assert (pair.recipe.n_steps, pair.recipe.batch_size) == (39_000, 128)
        assert (pair.n_samples, pair.seeds) == ((50_000,), "0,1,2,3,4,5,6,7,8,9")


def test_a_preset_s_own_words_are_left_to_it():
    (pair,) = pairs("fig6-metrics", "paper")
    assert pair == build_options({"preset": "paper", "seeds": list(range(10))})
    assert pair.recipe == CompareOptions.of_preset("paper").recipe


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_passes_at_smoke_scale(reproduce, tmp_path, name, monkeypatch):
    monkeypatch.setattr("bootstrap.pair.write_figure", lambda run: ())
    code, out, err = reproduce(name)
    assert code == 0, err
    paths = [tmp_path / "figures" / f"{name}-smoke.{end}" for end in ("csv", "png", "svg")]
    assert out.splitlines()[-3:] == [str(path) for path in paths]
    table = paths[0].read_text()
    figure = build_figure(name, "smoke")
    for label in [point.label for point in figure.points] + [toy.target for toy in figure.toys]:
        assert label in table


# ---------------------------------------------------------------- stages


@pytest.mark.usefixtures("no_figure")
def test_weights_are_made_before_the_pairs_that_start_from_them_and_once(
    reproduce, tmp_path, updates
):
    code, out, err = reproduce("fig5-pretraining")
    assert code == 0, err
    weights = sorted((tmp_path / "pretrained").glob("*.safetensors"))
    assert len(weights) == 2
    cards = [json.loads(path.with_suffix(".json").read_bytes()) for path in weights]
    assert [card["data"]["n_samples"] for card in cards] == [64, 64]  # of the 96 that there are
    assert out.splitlines()[:2] == [
        f"{path}: made" for path in sorted(weights, key=lambda path: path.stat().st_mtime_ns)
    ]
    started = {run.config.get("init", {}).get("file") for run in load_runs(tmp_path)}
    assert started == {None, *(path.name for path in weights)}
    updates.clear()
    code, out, _ = reproduce("fig5-pretraining")
    assert (code, updates) == (0, [])
    assert "3 pairs, 3 of them done" in out


@pytest.mark.usefixtures("no_figure")
def test_each_start_is_trained_at_the_rate_that_was_picked_for_it(reproduce, tmp_path, updates):
    code, out, err = reproduce("vit-pretraining")
    assert code == 0, err
    picked = [json.loads(path.read_bytes()) for path in (tmp_path / "picked-lr").iterdir()]
    assert len(picked) == 2
    rates = [run.config["recipe"]["optimizer"] for run in load_runs(tmp_path)]
    formats = {0.001: "adamw", 0.003: "adamw(lr=0.003)"}
    assert sorted(rates) == sorted(formats[pick["lr"]] for pick in picked)
    assert out.count("picked by the error on `reference`") == 2
    updates.clear()
    assert reproduce("vit-pretraining")[0] == 0
    assert updates == []


@pytest.mark.usefixtures("no_figure")
def test_pre_training_that_is_stopped_goes_on_with_the_same_command(reproduce, tmp_path):
    code, _, err = reproduce("fig5-pretraining", "--max-minutes", "0.000001")
    assert code == 75, err
    assert not list(tmp_path.glob("pretrained/*.safetensors"))
    assert reproduce("fig5-pretraining")[0] == 0


@pytest.mark.usefixtures("no_figure")
def test_a_part_does_not_make_the_weights_that_another_part_is_making(reproduce, tmp_path):
    assert reproduce("vit-pretraining")[0] == 0
    (weights,) = (tmp_path / "pretrained").glob("*.safetensors")
    weights.unlink()
    weights.with_suffix(".json").unlink()
    with locked(weights.with_suffix(".work")):
        code, _, err = reproduce("vit-pretraining", "--part", "2/2")
    assert code == 75
    assert "the same command goes on once they are made" in err


@pytest.mark.usefixtures("no_figure")
def test_a_figure_s_weights_are_made_for_a_sweep_too(deep_bootstrap, data, tmp_path):
    words = ("--scale", "smoke", "--data", data, "--out", tmp_path, *PLAIN)
    code, out, err = deep_bootstrap("sweep", "fig5-pretraining", *words)
    assert code == 0, err
    assert "3 of 3 have ended" in out


def test_a_dry_run_counts_weights_rates_and_the_pairs_after_them(reproduce, tmp_path):
    code, out, err = reproduce("vit-pretraining", "--dry-run")
    assert code == 0, err
    lines = out.splitlines()
    assert [line.partition(",")[0] for line in lines[:3]] == [
        *("picking a learning rate", "pre-training", "picking a learning rate")
    ]
    assert [line.split()[0] for line in lines[4:]] == ["weights-to-come"] * 2 + ["in"]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_does_not_need_the_images_of_pre_training(deep_bootstrap, toy_data, tmp_path):
    words = ("--scale", "smoke", "--data", toy_data, "--out", tmp_path, *PLAIN, "--dry-run")
    code, out, err = deep_bootstrap("reproduce", "fig5-pretraining", *words)
    assert code == 0, err
    assert "64 images of the split `pretrain` are drawn first" in out


def test_weights_without_images_to_make_them_from_exit_4(deep_bootstrap, toy_data, tmp_path):
    words = ("--scale", "smoke", "--data", toy_data, "--out", tmp_path, *PLAIN)
    code, _, err = deep_bootstrap("reproduce", "fig5-pretraining", *words)
    assert code == 4
    assert "generate --n-pretrain N" in err


@pytest.mark.usefixtures("no_figure")
def test_images_for_weights_are_generated_with_the_others(deep_bootstrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr("bootstrap.cli.generate", made.append)
    deep_bootstrap("reproduce", "fig5-pretraining", "--scale", "smoke")
    assert made == [["--preset", "smoke", "--n-pretrain", "64"]]


# ---------------------------------------------------------------- real images, and no images


def test_real_images_are_asked_for_with_the_command_that_imports_them(
    deep_bootstrap, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = deep_bootstrap("reproduce", "fig3")
    assert code == 4
    assert "`deep-bootstrap import npz FOLDER data/cifar10`" in err
    code, _, err = deep_bootstrap("reproduce", "fig3", "--scale", "paper")
    assert code == 4
    assert "`deep-bootstrap import image-folder FOLDER data/dogbird --side 224`" in err


@pytest.mark.usefixtures("no_figure")
def test_a_finite_pool_s_caption_says_from_which_step_the_ideal_world_is_approximate(
    reproduce, tmp_path
):
    assert reproduce("fig3")[0] == 0
    said = about_series(series_of(load_runs(tmp_path)))
    assert "from step 6 on the ideal world is approximate." in said  # 2,048 // 320
    assert said.count("approximate") == 1


def test_linear_toys_are_no_pairs_that_a_sweep_could_run(deep_bootstrap, tmp_path):
    code, _, err = deep_bootstrap("sweep", "linear-toys", "--out", tmp_path)
    assert code == 2
    assert "linear-toys has no pairs; use `reproduce linear-toys`" in err


# ---------------------------------------------------------------- the command


@pytest.mark.usefixtures("no_figure")
def test_a_figure_is_drawn_again_without_training(reproduce, updates):
    assert reproduce("fig6-metrics")[0] == 0
    updates.clear()
    code, out, _ = reproduce("fig6-metrics")
    assert (code, updates) == (0, [])
    assert "1 pair, 1 of them done" in out


@pytest.mark.usefixtures("no_figure")
def test_the_last_part_draws_the_figure(reproduce, tmp_path):
    _, first, _ = reproduce("lr-sweep", "--part", "1/2")
    assert first.splitlines()[-1] == "other parts have 1 pair to do; the last one draws the figure"
    assert not (tmp_path / "figures").exists()
    assert reproduce("lr-sweep", "--part", "2/2")[0] == 0
    assert (tmp_path / "figures" / "lr-sweep-smoke.png").exists()


@pytest.mark.usefixtures("no_figure")
def test_a_figure_is_a_grid_too(deep_bootstrap, reproduce, data, tmp_path, updates):
    words = ("--scale", "smoke", "--data", data, "--out", tmp_path, *PLAIN)
    assert deep_bootstrap("sweep", "fig6-metrics", *words)[0] == 0
    updates.clear()
    assert reproduce("fig6-metrics")[0] == 0
    assert updates == []


@pytest.mark.usefixtures("no_figure")
def test_missing_data_are_made_first(deep_bootstrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr("bootstrap.cli.generate", made.append)
    code, _, _ = deep_bootstrap("reproduce", "fig6-metrics", "--scale", "smoke")
    assert made == [["--preset", "smoke"]]
    assert code == 3  # the stub made none


def test_the_paper_scale_without_its_pool_exits_4_with_both_ways_to_one(
    deep_bootstrap, toy_data, tmp_path
):
    for data in (toy_data, tmp_path / "none"):
        words = ("reproduce", "fig1", "--scale", "paper", "--data", data, "--out", tmp_path / "out")
        code, _, err = deep_bootstrap(*words)
        assert code == 4
        assert f"deep-bootstrap generate --preset paper --data {data} --n 4992000" in err
        assert "deep-bootstrap import cifar5m-npz FOLDER data/cifar5m" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("fig1", "--scale", "lptop"), "--scale lptop: use one of smoke, laptop, paper"),
        (("fig5-augmentaton",), "did you mean 'fig5-augmentation'?"),
    ],
    ids=str,
)
def test_a_figure_that_is_none_exits_2(deep_bootstrap, words, why):
    code, _, err = deep_bootstrap("reproduce", *words)
    assert code == 2
    assert why in err


def test_a_dry_run_says_what_a_figure_takes(reproduce, tmp_path):
    code, out, _ = reproduce("fig6-metrics", "--dry-run")
    assert code == 0
    assert out.splitlines()[-1].startswith("in all")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_figure")
def test_a_pair_that_fails_is_missing_in_the_figure_and_named(reproduce, tmp_path, monkeypatch):
    from bootstrap.presets.figure import Figure, Point

    base = {"preset": "smoke", "n_steps": 8, "every_step": False, "n_samples": 64}
    bad = {"optimizer": "sgd(lr=1e30)", "model": "mlp(width=8, depth=1, batch_norm=False)"}
    good = {"model": "mlp(width=8, depth=1)"}
    points = (
        Point(label="bad", words={**base, **bad}),
        Point(label="good", words={**base, **good}),
    )
    monkeypatch.setitem(FIGURES, "fig1", lambda scale: Figure(about="x", points=points))
    code, _, err = reproduce("fig1")
    assert code == 5
    assert "all other pairs are done; 1 did not end" in err
    table = (tmp_path / "figures" / "fig1-smoke.csv").read_text()
    assert "good," in table
    failed = [
        p
        for p in tmp_path.glob("*/summary.json")
        if "failed" in json.loads(p.read_text())["status"]
    ]
    assert len(failed) == 1
