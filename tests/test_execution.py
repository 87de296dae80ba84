"""Whatever changes bits is decided once, and what is not there is refused."""

import pytest
import torch

from bootstrap import execution
from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags, resolve_device, resolve_flags
from bootstrap.options import Execution


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_cuda_where_there_is_none_is_refused_with_the_remedy(device):
    with pytest.raises(ConfigurationError, match=f"--device {device}: no CUDA.*use --device cpu"):
        resolve_device(device)


@pytest.mark.usefixtures("no_cuda")
def test_auto_without_cuda_is_the_cpu():
    assert resolve_device("auto") == "cpu"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked", "found"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_device_that_is_there_is_found(asked, found):
    assert resolve_device(asked) == found


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_beyond_those_there_are_is_refused():
    with pytest.raises(ConfigurationError, match=r"only 2 CUDA device\(s\) here"):
        resolve_device("cuda:2")


def test_mps_where_there_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="no Apple GPU"):
        resolve_device("mps")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["gpu", "", "tpu", "cuda:x", "cuda:-1", "cuda:", "cpu:3"])
def test_a_device_of_no_known_name_is_refused(device):
    with pytest.raises(ConfigurationError, match="use auto, cpu, cuda, cuda:<index> or mps"):
        resolve_device(device)


@pytest.mark.parametrize(("is_fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_bf16_where_that_is_fast(monkeypatch, is_fast, precision):
    monkeypatch.setattr(execution, "has_fast_bf16", lambda kind: is_fast)
    assert resolve_flags("cpu").precision == precision


def test_a_precision_that_was_asked_for_is_kept(monkeypatch):
    monkeypatch.setattr(execution, "has_fast_bf16", lambda kind: True)
    assert resolve_flags("cpu", "fp32").precision == "fp32"


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(execution, "has_compiler", lambda: True)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("family", "units", "n_images", "compiled"),
    [
        ("classifier", "amx_bf16", 9, False),
        ("classifier", "amx_bf16", 10, True),
        ("classifier", "cpu", 10, False),
        ("denoiser", "amx_bf16", 10, False),
    ],
)
def test_auto_compiles_from_as_many_images_as_the_table_says(
    monkeypatch, family, units, n_images, compiled
):
    table = {("classifier", "amx_bf16"): 10, ("denoiser", "amx_bf16"): 11}
    monkeypatch.setattr(execution, "COMPILE_PAYS_FROM_N_IMAGES", table)
    monkeypatch.setattr(execution, "bf16_units", lambda: units)
    assert resolve_flags("cpu", family=family, n_images=n_images).compiled is compiled


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("n_images", [0, 1 << 40])
def test_extending_a_data_set_does_not_change_how_it_is_made(n_images):
    assert resolve_flags("cpu", family="denoiser", n_images=n_images).compiled is True


def test_auto_does_not_compile_without_a_compiler(monkeypatch):
    monkeypatch.setattr(execution, "has_compiler", lambda: False)
    assert resolve_flags("cpu", family="denoiser").compiled is False


def test_compiling_without_a_compiler_is_refused_if_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(execution, "has_compiler", lambda: False)
    with pytest.raises(ConfigurationError, match=r"needs a C\+\+ compiler"):
        resolve_flags("cpu", compiled="on")


@pytest.mark.usefixtures("compiler")
def test_off_does_not_compile():
    assert resolve_flags("cpu", compiled="off", family="denoiser").compiled is False


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_matrix_products_run_at_the_precision(precision, dtype):
    flags = Flags(device="cpu", precision=precision, compiled=False, n_threads=2)
    with flags.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype == flags.dtype


def test_the_number_of_threads_can_be_asked_for():
    assert Execution(device="cpu", threads=1).resolve("denoiser", 0).n_threads == 1
    with pytest.raises(ConfigurationError, match="--threads 0: give at least one"):
        Execution(threads=0)


def test_flags_set_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        Flags(device="cpu", precision="fp32", compiled=False, n_threads=2).apply()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_flags_describe_themselves_in_one_line():
    flags = Flags(device="cpu", precision="bf16", compiled=True, n_threads=2)
    assert flags.describe() == "cpu, bf16, compiled, 2 threads"


@pytest.mark.parametrize("option", [{"precision": "nonsense"}, {"compile": "maybe"}], ids=str)
def test_an_option_that_is_none_of_its_choices_is_refused(option):
    with pytest.raises(ConfigurationError, match=r"use one of auto, "):
        Execution(**option)
