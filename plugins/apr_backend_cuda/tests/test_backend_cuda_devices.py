"""Which GPU is used and why one is refused, beside a driver that is made up."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from apr_backend_cuda import devices, probe
from apr_backend_cuda.backend import Cuda
from apr_core import load
from apr_core.plugin import BackendUnavailable
from apr_devkit.tiny import tiny_apr

HOPPER, TURING = ("NVIDIA H100 80GB HBM3", (9, 0)), ("Tesla T4", (7, 5))


class Driver:
    """As much of libcuda as is asked for: functions that write through pointers."""

    def __init__(self, *gpus, error=0):
        self.gpus, self.error = gpus, error

    def cuInit(self, flags):
        return self.error

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, handle, number):
        handle._obj.value = 40 + number  # a handle is not the number
        return 0

    def cuDeviceGetName(self, buffer, size, handle):
        buffer.value = self.gpus[handle.value - 40][0].encode()[: size - 1]
        return 0

    def cuDeviceGetAttribute(self, value, which, handle):
        value._obj.value = self.gpus[handle.value - 40][1][which - probe.MAJOR]
        return 0

    def cuGetErrorString(self, error, text):
        text._obj.value = b"system not yet initialized"
        return 0


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine with these GPUs, and with a torch that can use them all."""

    def make(*gpus, error=0):
        driver = Driver(*gpus, error=error)
        monkeypatch.setattr(probe.ctypes, "CDLL", lambda name: driver)
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.delenv(probe.VISIBLE, raising=False)
        monkeypatch.setattr(probe, "version", lambda name: "2.9.0")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))

    return make


def refusal(number=None):
    with pytest.raises(BackendUnavailable) as refused:
        devices.visible_device(number)
    assert refused.value.exit_code == 14
    return refused.value.message, refused.value.hint


def test_without_a_driver_there_is_no_device(machine, monkeypatch):
    machine()

    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(probe.ctypes, "CDLL", no_library)
    reason = "no CUDA device: there is no NVIDIA driver here"
    assert probe.probe() == (0, reason)
    assert refusal()[0] == f"there is {reason}"


def test_a_driver_that_finds_none_is_no_device(machine):
    for driver in ({"error": probe.NO_DEVICE}, {"error": 0}):
        machine(**driver)
        assert probe.probe() == (0, "no CUDA device: the NVIDIA driver finds none")


def test_what_hides_devices_is_named(machine, monkeypatch):
    machine(error=probe.NO_DEVICE)
    monkeypatch.setenv(probe.VISIBLE, "")
    assert probe.probe()[1].endswith("finds none, and CUDA_VISIBLE_DEVICES='' may hide some")
    machine(HOPPER)
    monkeypatch.setenv(probe.VISIBLE, "3")
    assert refusal("1")[0].endswith("H100 80GB HBM3 (CUDA_VISIBLE_DEVICES=3)")


def test_a_driver_that_does_not_start_says_why(machine):
    machine(HOPPER, error=802)
    reason = "the NVIDIA driver does not start: system not yet initialized (error 802)"
    assert probe.probe() == (0, f"no CUDA device: {reason}") and reason in refusal()[0]


def test_all_devices_are_listed_with_their_numbers(machine):
    machine(HOPPER, ("NVIDIA L4", (8, 9)))
    assert probe.probe() == (100, "2 CUDA devices: 0 NVIDIA H100 80GB HBM3, 1 NVIDIA L4")
    machine(HOPPER)
    assert probe.probe() == (100, "1 CUDA device: 0 NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(("number", "index"), [(None, 0), ("0", 0), ("1", 1), ("01", 1)])
def test_the_device_of_a_number_is_used_and_the_first_without_one(machine, number, index):
    machine(HOPPER, HOPPER)
    assert devices.visible_device(number) == torch.device("cuda", index)


def test_a_number_that_no_device_has_is_refused_with_those_there_are(machine):
    machine(HOPPER, ("NVIDIA L4", (8, 9)))
    message, hint = refusal("9")
    assert message == (
        "there is no cuda:9 among 2 CUDA devices: 0 NVIDIA H100 80GB HBM3, 1 NVIDIA L4"
    )
    assert hint == "Choose cuda:0 or cuda:1."


def test_a_device_that_is_too_old_is_passed_over_but_refused_by_its_number(machine):
    machine(TURING, HOPPER)
    assert probe.probe()[0] == 100 and devices.visible_device(None).index == 1
    message, hint = refusal("0")
    assert "Tesla T4 has compute capability 7.5, and 8.0 is needed" in message
    assert hint == "Choose cuda:1."


def test_where_all_are_too_old_the_plugin_is_unavailable(machine):
    machine(TURING)
    score, reason = probe.probe()
    assert score == 0 and reason.startswith("no CUDA device that kernels run on: Tesla T4 has")
    assert refusal()[1] == "Choose another backend with --backend."


def test_a_torch_without_cuda_is_refused_by_its_name_or_once_it_is_imported(machine, monkeypatch):
    machine(HOPPER)
    monkeypatch.setattr(probe, "version", lambda name: "2.9.0+cpu")
    assert probe.probe() == (0, "torch 2.9.0+cpu is built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", None)
    message, hint = refusal()
    assert "is built without CUDA, so it cannot use NVIDIA H100" in message
    assert hint == "Install a torch that is built for CUDA."


def test_a_driver_too_old_for_torch_is_refused_in_torchs_words(machine, monkeypatch):
    machine(HOPPER)

    def too_old(*shape, device):
        raise RuntimeError("The NVIDIA driver on your system is too old (found 11040).\nMore.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "zeros", too_old)
    message, hint = refusal()
    assert "built for CUDA 13.0, cannot use NVIDIA H100" in message
    assert message.endswith("The NVIDIA driver on your system is too old (found 11040).")
    assert hint.startswith("Update the NVIDIA driver, or install a torch")


def test_a_device_that_torch_does_not_see_is_refused(machine, monkeypatch):
    machine(HOPPER, HOPPER)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.visible_device("0").index == 0
    assert "cuda:1 is not among them" in refusal("1")[0]


def test_threads_that_upload_are_on_the_device(monkeypatch):
    """Threads begin with device 0, and Triton launches on the device that is current."""
    entered = []
    monkeypatch.setattr(torch.cuda, "set_device", entered.append)
    devices.enter(torch.device("cuda", 1))
    devices.enter(torch.device("cpu"))
    assert entered == [torch.device("cuda", 1)]


def test_interpreted_there_is_one_device():
    assert Cuda().device == Cuda(device="0").device == torch.device("cpu")
    assert "TRITON_INTERPRET is set" in refusal("1")[0]


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "apr-backend-cuda:cuda:0"])
def test_a_model_names_it_with_its_device(name, tmp_path):
    path = tiny_apr("qwen2", tmp_path, "q8_0")
    with load(path, name, kv_type="f32") as model:
        assert model.report.device.startswith("cuda: interpreted")
        assert np.isfinite(model.logits([1, 2])).all()


@pytest.mark.skipif(probe.torch_without_cuda() == "", reason="torch is built for CUDA here")
def test_the_command_refuses_and_runs_on_nothing_else(tmp_path):
    """Whatever this machine has: with this torch there is no GPU to be had."""
    run = ["run", tiny_apr("qwen2", tmp_path), "hi", "--backend", "cuda"]
    done = subprocess.run(
        [sys.executable, "-m", "apr_core.cli", *run],
        env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 14 and not done.stdout, done.stderr
    assert "error: backend 'cuda' cannot run on this machine: " in done.stderr
    assert "--backend" in done.stderr


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_what_is_not_installed_is_named_with_exit_code_14(tmp_path, missing):
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == sys.argv[1] "
        "else find(name, *more)\n"
        "from apr_core.cli import run\n"
        "sys.exit(run(['run', sys.argv[2], 'hi', '--backend', 'cuda']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, missing, tiny_apr("qwen2", tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 14, done.stderr
    assert f"needs {missing}, which is not installed" in done.stderr
    assert f"pip install {missing}" in done.stderr


def test_an_unusual_answer_of_the_driver_is_said_with_its_number(machine, monkeypatch):
    machine(HOPPER)
    monkeypatch.setattr(Driver, "cuDeviceGetName", lambda *arguments: 999)
    assert probe.probe() == (
        0,
        "no CUDA device: the NVIDIA driver says of device 0: system not yet initialized "
        "(error 999)",
    )
