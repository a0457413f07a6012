"""Which NVIDIA GPUs there are. Asks the driver; imports neither torch nor Triton."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SCORE, INTERPRETED = 100, 1  # above CPUs; below them where kernels are only interpreted
DRIVER = "libcuda.so.1"
NEEDED = (8, 0)  # least compute capability whose tensor cores take bf16
MAJOR, MINOR = 75, 76  # the driver's numbers for the two parts of a compute capability
NO_DEVICE = 100  # the driver's error code
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as the driver reports it. `number` is what follows `cuda:`."""

    number: int
    name: str
    capability: tuple[int, int]

    @property
    def usable(self) -> bool:
        """Whether kernels run on it."""
        return self.capability >= NEEDED

    def __str__(self) -> str:
        return f"{self.number} {self.name}"


class NoDevices(Exception):
    """There is no GPU; the message says why."""


def interpreted() -> bool:
    """Return whether Triton is told to run kernels in Python, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def probe() -> tuple[int, str]:
    """Return (score, reason); the score is 0 if the backend cannot run."""
    if interpreted():
        return INTERPRETED, "TRITON_INTERPRET is set: kernels are interpreted, which is for tests"
    try:
        gpus = devices()
    except NoDevices as reason:
        return 0, f"no CUDA device: {reason}"
    if not any(device.usable for device in gpus):
        return 0, f"no CUDA device that kernels run on: {unusable(gpus[0])}"
    built = torch_without_cuda()
    if built:
        return 0, f"{built} is built without CUDA"
    return SCORE, listed(gpus)


def listed(gpus: list[Device]) -> str:
    """Return a line such as `2 CUDA devices: 0 NVIDIA L4, 1 NVIDIA L4`."""
    names = ", ".join(map(str, gpus))
    return f"{len(gpus)} CUDA device{'s' * (len(gpus) > 1)}: {names}"


def unusable(device: Device) -> str:
    """Return why kernels do not run on a device."""
    has, needs = (".".join(map(str, pair)) for pair in (device.capability, NEEDED))
    return f"{device.name} has compute capability {has}, and {needs} is needed"


def torch_without_cuda() -> str:
    """Return `torch 2.9.0+cpu` if the installed version's name says so, else ""."""
    try:
        release = version("torch")
    except PackageNotFoundError:
        return ""
    return f"torch {release}" if release.endswith("+cpu") else ""


def devices() -> list[Device]:
    """List all GPUs that the driver shows to this process. Raises NoDevices."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise NoDevices("there is no NVIDIA driver here") from None
    error = driver.cuInit(0)
    if error not in (0, NO_DEVICE):
        raise NoDevices(f"the NVIDIA driver does not start: {_explained(driver, error)}")
    count = ctypes.c_int()
    if error or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise NoDevices(_none_found())
    return [_device(driver, number) for number in range(count.value)]


def _none_found() -> str:
    if VISIBLE in os.environ:
        return f"the NVIDIA driver finds none, and {VISIBLE}={os.environ[VISIBLE]!r} may hide some"
    return "the NVIDIA driver finds none"


def _device(driver: Any, number: int) -> Device:
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    error = driver.cuDeviceGet(ctypes.byref(handle), number)
    error = error or driver.cuDeviceGetName(name, len(name), handle)
    if error:
        raise NoDevices(f"the NVIDIA driver says of device {number}: {_explained(driver, error)}")
    parts = [_attribute(driver, handle, which) for which in (MAJOR, MINOR)]
    return Device(number, name.value.decode(errors="replace"), (parts[0], parts[1]))


def _attribute(driver: Any, handle: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    error = driver.cuDeviceGetAttribute(ctypes.byref(value), which, handle)
    if error:
        raise NoDevices(f"the NVIDIA driver: {_explained(driver, error)}")
    return value.value


def _explained(driver: Any, error: int) -> str:
    """Return the driver's text for an error, with its number."""
    text = ctypes.c_char_p()
    driver.cuGetErrorString(error, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode(errors='replace')} (error {error})"
