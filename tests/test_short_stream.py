"""A stream that is too short is refused; with --allow-reuse its ideal world says from where on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_paired import FLAGS, content, stop_after
from tiny_pair import COMPARE, TINY

from bootstrap.caption import caption
from bootstrap.errors import Interrupted, NotEnoughData
from bootstrap.pair import run_pair
from bootstrap.plan import plan_pair
from bootstrap.plot import plot_pair
from bootstrap.reuse import reuse_of
from bootstrap.runlog import load_run
from bootstrap.verify_run import verify_run

RECIPE = replace(TINY, n_steps=40, batch_size=64)  # 2,560 draws from a stream of 2,048
END = 32  # 2,048 // 64
NOTE = "The stream was too short: from step 32 on the ideal world is approximate"


@pytest.fixture(scope="module")
def short(toy_data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bootstrap.pair.write_figure", lambda run: ())
        return run_pair(
            *(RECIPE, toy_data, tmp_path_factory.mktemp("short")),
            n_samples=(128,),
            flags=FLAGS,
            allow_reuse=True,
        )


def words(data, out, n_samples, *more):
    sizes = ("--n-steps", "40", "--batch-size", "64", "--n-samples", n_samples)
    return (*COMPARE, *sizes, "--data", data, "--out", out, *more)


def test_a_short_stream_exits_4_and_names_the_option(toy_data, tmp_path, deep_bootstrap):
    code, _, err = deep_bootstrap(*words(toy_data, tmp_path / "runs", 128))
    assert code == 4
    assert "holds 2,048 samples, 2,560 are needed" in err
    assert "or give --allow-reuse: the ideal world is then approximate in the end" in err
    assert "or lower --n-steps" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [(), ("--allow-reuse",)], ids=str)
def test_an_n_above_the_stream_exits_4_whatever_is_allowed(
    toy_data, tmp_path, deep_bootstrap, more
):
    code, _, err = deep_bootstrap(*words(toy_data, tmp_path / "runs", 2_049, *more))
    assert code == 4
    assert "N up to 2,049" in err
    assert "give --allow-reuse" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_figure")
def test_with_the_option_it_runs_and_says_so(toy_data, tmp_path, deep_bootstrap):
    code, out, _ = deep_bootstrap(*words(toy_data, tmp_path, 128, "--allow-reuse"))
    assert code == 0
    assert NOTE in out.splitlines()


def test_rows_of_the_ideal_world_are_marked_from_the_first_reused_sample_on(short):
    ideal, real = load_run(short).ideal, load_run(short).real[128]
    reused = ideal.samples_seen[0] > ideal.unique_samples_seen[0]
    np.testing.assert_array_equal(ideal.columns["extra.approximate"][0] == 1, reused)
    np.testing.assert_array_equal(ideal.steps > END, reused)
    assert ideal.unique_samples_seen[0, -1] == 2_048
    assert "extra.approximate" not in real.columns
    assert verify_run(short).problems == ()


def test_the_caption_and_the_figure_say_where_the_stream_ended(short):
    run = load_run(short)
    assert f"{NOTE}." in caption(run)
    above, below = plot_pair(run).figure.axes
    assert "ideal, approximate" in [text.get_text() for text in above.texts]
    for ax in (above, below):
        (shade,) = ax.patches
        assert shade.get_x() == END
    summary = json.loads((short / "summary.json").read_bytes())
    assert summary["ideal_approximate_from"] == END


def test_past_the_end_of_the_stream_the_ideal_world_measures_no_reuse(short):
    assert reuse_of(load_run(short)).limits[128].tolist() == [2_048 / 128]


@pytest.mark.usefixtures("no_figure")
def test_a_short_stream_is_stopped_and_gone_on_with_in_the_same_run(short, toy_data, tmp_path):
    options = {"n_samples": (128,), "flags": FLAGS, "allow_reuse": True}
    with pytest.raises(Interrupted):
        run_pair(RECIPE, toy_data, tmp_path, **options, control=stop_after(36))
    folder = run_pair(RECIPE, toy_data, tmp_path, **options)
    assert folder.name == short.name
    assert content(folder) == content(short)


@pytest.mark.usefixtures("no_figure")
def test_the_option_changes_nothing_where_the_stream_is_long_enough(toy_data, tmp_path):
    plain = run_pair(TINY, toy_data, tmp_path / "plain", n_samples=(48,), flags=FLAGS)
    options = {"n_samples": (48,), "flags": FLAGS, "allow_reuse": True}
    allowed = run_pair(TINY, toy_data, tmp_path / "allowed", **options)
    assert allowed.name == plain.name  # so it is no part of the identity
    assert content(allowed) == content(plain)
    run = load_run(allowed)
    assert "approximate" not in caption(run)
    assert "ideal world" in [text.get_text() for text in plot_pair(run).texts]
    assert json.loads((allowed / "summary.json").read_bytes())["ideal_approximate_from"] is None


def test_a_run_on_a_short_stream_is_not_gone_on_with_unless_allowed(short, toy_data):
    options = {"n_samples": (128,), "flags": FLAGS}
    assert plan_pair(RECIPE, toy_data, short.parent, **options, allow_reuse=True).folder == short
    with pytest.raises(NotEnoughData):
        plan_pair(RECIPE, toy_data, short.parent, **options)
