"""The command line: what was wrong, where, and the next command; the exit code says which kind."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from bootstrap import cli, signals
from bootstrap.cli import COMMANDS, parse_seeds
from bootstrap.errors import ConfigurationError, NumericError
from bootstrap.presets import PRESETS, build_preset
from bootstrap.shards import read_manifest
from bootstrap.signals import StopRequest


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)], ids=str)
def test_help_lists_every_command(deep_bootstrap, words):
    code, out, _ = deep_bootstrap(*words)
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert code == 0
    assert listed == {*COMMANDS, *PRESETS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(deep_bootstrap, command):
    code, out, _ = deep_bootstrap(command, "--help")
    assert code == 0
    assert f"usage: deep-bootstrap {command}" in out


def test_an_unknown_command_exits_2_and_lists_the_commands(deep_bootstrap):
    code, _, err = deep_bootstrap("conpare")
    assert code == 2
    assert err.startswith("deep-bootstrap: unknown command 'conpare'; there are: generate, compare")


@pytest.mark.parametrize("command", ["compare", "generate"])
def test_an_unknown_preset_exits_2_with_a_suggestion(deep_bootstrap, command):
    code, _, err = deep_bootstrap(command, "--preset", "labtop")
    assert code == 2
    assert "unknown preset 'labtop'; did you mean 'laptop'?" in err


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("command", ["compare", "generate"])
def test_cuda_where_there_is_none_exits_2_with_the_remedy(deep_bootstrap, command):
    code, _, err = deep_bootstrap(command, "--preset", "smoke", "--device", "cuda")
    assert code == 2
    assert "no CUDA device is available here; use --device cpu or auto" in err


@pytest.mark.parametrize(
    "words",
    [
        ("--precision", "nonsense"),
        ("--compile", "maybe"),
        ("--n-steps", "0"),
        ("--n-steps", "many"),
        ("--model", "preresnet19"),
        ("--optimizer", "sgd(lr=open('x'))"),
        ("--optimizer", "sgd(lr=0)"),
        ("--seeds", "4-0"),
        ("--no-such-option",),
    ],
    ids=" ".join,
)
def test_an_option_that_cannot_be_exits_2(deep_bootstrap, words, toy_data, tmp_path):
    at = ("--data", toy_data, "--out", tmp_path / "results")
    code, _, err = deep_bootstrap("compare", "--preset", "smoke", *at, *words)
    assert code == 2
    assert "Traceback" not in err
    assert not (tmp_path / "results").exists()


def test_an_unknown_model_gets_a_suggestion(deep_bootstrap):
    _, out, err = deep_bootstrap("compare", "--preset", "smoke", "--model", "preresnet19")
    assert "preresnet18" in out + err


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("toy(sied=8)", "did you mean 'side'?"),
        ("toi", "did you mean 'toy'?"),
        ("toy(side='8')", "must be a int"),
        ("toy(noise=True)", "must be a float"),
        ("toy(side=open('was-run', 'w'))", "arguments must be literals"),
        ("toy(side=0)", "side=0"),
        ("toy(n_channels=2)", "n_channels=2"),
        ("toy(n_classes=1)", "n_classes=1"),
        ("toy(noise=-0.1)", "noise=-0.1"),
        ("diffusion(solver='heum')", "use one of"),
    ],
)
def test_a_source_that_cannot_be_exits_2_and_makes_nothing(
    deep_bootstrap, tmp_path, monkeypatch, source, why
):
    monkeypatch.chdir(tmp_path)
    code, _, err = deep_bootstrap("generate", "--preset", "smoke", "--source", source)
    assert code == 2
    assert why in err
    assert list(tmp_path.iterdir()) == []


def test_a_source_of_ones_own_keeps_the_classes_it_was_asked_for(deep_bootstrap, tmp_path):
    words = ("--preset", "laptop", "--source", "toy(side=8)", "--data", tmp_path / "toy")
    assert build_preset("laptop").data.labels == "teacher"
    assert deep_bootstrap("generate", *words, "--n", 1)[0] == 0
    assert read_manifest(tmp_path / "toy").label_source == "conditional"


def test_a_teacher_of_other_images_is_refused(deep_bootstrap, tmp_path):
    words = ("generate", "--source", "toy(side=8)", "--labels", "teacher", "--data", tmp_path / "d")
    code, _, err = deep_bootstrap(*words)
    assert code == 2
    assert "teacher-v1.safetensors knows images of 32x32x3, not of 8x8x3" in err
    assert not (tmp_path / "d").exists()


def test_workers_without_ray_exit_2_and_say_what_they_are_for(deep_bootstrap, tmp_path):
    words = ("generate", "--preset", "smoke", "--data", tmp_path, "--workers", "2")
    code, _, err = deep_bootstrap(*words)
    assert (code, err) == (2, "deep-bootstrap: --workers is for --ray; add `--ray local`\n")


def test_ray_that_is_not_installed_exits_2_with_the_command(deep_bootstrap, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ("generate", "--preset", "smoke", "--data", tmp_path, "--ray", "local")
    code, _, err = deep_bootstrap(*words)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "pip install 'deep-bootstrap[cluster]'" in err


@pytest.mark.parametrize("n", ["0", "-5"])
def test_a_stream_of_no_images_exits_2(deep_bootstrap, tmp_path, n):
    code, _, err = deep_bootstrap("generate", "--preset", "smoke", "--data", tmp_path, "--n", n)
    assert code == 2
    assert f"--n {n}: give at least one stream image" in err


def test_a_missing_data_set_exits_3_and_says_what_makes_it(deep_bootstrap, tmp_path):
    folder = tmp_path / "nothing"
    code, _, err = deep_bootstrap("compare", "--preset", "smoke", "--data", folder)
    assert code == 3
    assert err.startswith(f"deep-bootstrap: {folder} holds no data set")
    assert "make generate" in err


def test_a_stream_that_is_too_short_exits_4_with_both_numbers_and_the_remedy(
    deep_bootstrap, toy_data, tmp_path
):
    at = ("--data", toy_data, "--out", tmp_path / "results")
    code, _, err = deep_bootstrap("compare", "--preset", "smoke", *at)
    assert code == 4
    assert "the stream holds 2,048 samples, 4,096 are needed" in err
    assert f"deep-bootstrap generate --preset smoke --data {toy_data} --n 4096" in err
    assert not (tmp_path / "results").exists()


def test_a_dry_run_says_what_would_be_run_and_trains_nothing(deep_bootstrap, toy_data, tmp_path):
    at = ("--data", toy_data, "--out", tmp_path / "results", "--n-steps", "32")
    code, out, err = deep_bootstrap("compare", "--preset", "smoke", *at, "--dry-run")
    assert code == 0
    assert "N = 200, 1,000" in err
    assert out.startswith("per seed ")
    assert not (tmp_path / "results").exists()


def test_a_finished_data_set_is_left_alone(deep_bootstrap, tmp_path):
    words = ("generate", "--preset", "smoke", "--n", "1", "--data", tmp_path / "toy")
    first, second = deep_bootstrap(*words), deep_bootstrap(*words)
    assert (first[0], second[0]) == (0, 0)
    assert second[1].endswith("test 1,000, reference 512, stream 1,024; nothing to do\n")


def test_doctor_prints_its_lines(deep_bootstrap, tmp_path):
    code, out, _ = deep_bootstrap("doctor", "--data", tmp_path, "--out", tmp_path)
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "python",
        "packages",
        "processor",
        "cuda",
        "compiler",
        "memory",
        "free disk",
        "auto means",
        "weights",
        "data sets",
        "runs",
    ]


def test_doctor_names_data_sets(deep_bootstrap, toy_data, tmp_path):
    _, out, _ = deep_bootstrap("doctor", "--data", toy_data.parent, "--out", tmp_path)
    assert f"{toy_data} (2,048 stream, 512 test)" in out


def test_a_missing_package_exits_2_with_the_remedy(deep_bootstrap, tmp_path, monkeypatch):
    monkeypatch.setattr("bootstrap.doctor.NEEDED", ("numpy", "no_such_package"))
    code, _, err = deep_bootstrap("doctor", "--data", tmp_path, "--out", tmp_path)
    assert code == 2
    assert "missing: no_such_package; install with" in err


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", (0,)), ("0-4", (0, 1, 2, 3, 4)), ("3,0", (3, 0)), ("7,1-2", (7, 1, 2)), ("1,1", (1,))],
)
def test_seeds_are_read(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "4-0", "1,,2", "1.5"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ConfigurationError, match="write 0-4 or 0,3"):
        parse_seeds(text)


def fail_with(error):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NumericError("NaN"), 5),
        (ValueError("bad"), 2),
        (FileNotFoundError("gone"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "/there"), 2),
        (OSError(errno.EROFS, "Read-only file system", "/there"), 2),
        (OSError(errno.EIO, "Input/output error", "/there"), 75),
        (OSError("no number"), 1),
        (KeyError("a bug"), 1),
    ],
    ids=repr,
)
def test_the_exit_code_is_that_of_the_error(deep_bootstrap, monkeypatch, error, code):
    monkeypatch.setitem(cli.COMMANDS, "doctor", fail_with(error))
    found, _, err = deep_bootstrap("doctor")
    assert found == code
    assert len(err.splitlines()) == 1
    assert ("a bug?" in err) is (code == 1)
    if getattr(error, "filename", None):
        assert f"/there: {error.strerror} (errno {error.errno}); " in err
        assert "then run the same command again" in err


@pytest.mark.parametrize("words", [("--help",), ("compare", "--help")], ids=str)
def test_a_reader_who_leaves_ends_the_command_without_a_word(words):
    there, left = os.pipe()
    os.close(there)
    done = subprocess.run(
        [sys.executable, "-m", "bootstrap", *words],
        stdout=left,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(left)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_broken_pipe_elsewhere_is_told(deep_bootstrap, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "doctor", fail_with(BrokenPipeError(errno.EPIPE, "a worker")))
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    code, _, err = deep_bootstrap("doctor")
    assert code == 1
    assert "a worker" in err


def test_debug_shows_the_traceback(deep_bootstrap, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "doctor", fail_with(NumericError("NaN")))
    with pytest.raises(NumericError, match="NaN"):
        deep_bootstrap("doctor", "--debug")


def test_a_signal_asks_for_a_stop_and_says_so():
    said = []
    with StopRequest(said.append) as stop:
        assert not stop.is_requested()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_requested()
    assert len(said) == 1


def test_a_second_interrupt_exits_130():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as stopped:
            signal.raise_signal(signal.SIGINT)
        assert stop.is_requested()
    assert stopped.value.code == 130


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_signals_that_a_system_lacks_are_skipped(monkeypatch):
    monkeypatch.setattr(signals, "NAMES", ("SIGTERM", "SIGNOSUCH"))
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_requested()
