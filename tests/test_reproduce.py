"""Every figure passes at its smallest scale; the others are checked as far as words go."""

import json

import pytest

from bootstrap.grid import build_options, figure_sweep
from bootstrap.options import CompareOptions
from bootstrap.presets import PRESETS
from bootstrap.presets.figure import PRESET_OF, SCALES
from bootstrap.presets.figures import FIGURES, build_figure

PLAIN = ("--precision", "fp32", "--compile", "off", "--threads", "1")


def pairs(name, scale):
    return figure_sweep(build_figure(name, scale)).pairs()


@pytest.fixture
def reproduce(deep_bootstrap, toy_data, tmp_path):
    """Run the command on a smoke figure; returns (exit code, stdout, stderr)."""

    def run(name, *words):
        at = ("--data", toy_data, "--out", tmp_path)
        return deep_bootstrap("reproduce", name, "--scale", "smoke", *at, *PLAIN, *words)

    return run


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_asks_for_pairs_that_fit_their_preset_s_data(name, scale):
    for pair in pairs(name, scale):
        spec = PRESETS[pair.preset]().data
        assert pair.preset == PRESET_OF[scale]
        assert max(pair.recipe.n_draws, *pair.n_samples) <= spec.n_stream
        assert pair.recipe.every_step is False


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
    for point in build_figure(name, "smoke").points:
        assert f"{point.label}" in table


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
def test_a_figure_is_a_grid_too(deep_bootstrap, reproduce, toy_data, tmp_path, updates):
    words = ("--scale", "smoke", "--data", toy_data, "--out", tmp_path, *PLAIN)
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
