"""The GPU that a backend is for, or why it cannot be used; never another device instead."""

from __future__ import annotations

import os
import warnings

import torch

from apr_backend_cuda.probe import (
    VISIBLE,
    Device,
    NoDevices,
    devices,
    interpreted,
    listed,
    unusable,
)
from apr_core.plugin import BackendUnavailable


def visible_device(number: str | None) -> torch.device:
    """Return the device of that number; by default the first that kernels run on.

    Returns the CPU if kernels are interpreted. Raises BackendUnavailable.
    """
    if interpreted():
        return _interpreted(number)
    try:
        gpus = devices()
    except NoDevices as reason:
        raise BackendUnavailable(
            f"there is no CUDA device: {reason}", "`apr doctor` says more."
        ) from None
    device = _numbered(gpus, number)
    if not device.usable:
        raise BackendUnavailable(
            f"cuda:{device.number} cannot be used: {unusable(device)}", _others(gpus)
        )
    _check_torch(device)
    return torch.device("cuda", device.number)


def enter(device: torch.device) -> None:
    """Make the device current for this thread, as Triton launches kernels on the current one.

    Threads begin with device 0, so call this at every upload; each step begins with one.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _interpreted(number: str | None) -> torch.device:
    if int(number or 0):
        raise BackendUnavailable(
            f"there is no cuda:{number}: TRITON_INTERPRET is set, so kernels are interpreted on "
            "the processor, which is one device",
            "Write cuda, or unset TRITON_INTERPRET.",
        )
    return torch.device("cpu")


def _numbered(gpus: list[Device], number: str | None) -> Device:
    if number is None:
        return next((device for device in gpus if device.usable), gpus[0])
    if int(number) >= len(gpus):
        hidden = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        raise BackendUnavailable(
            f"there is no cuda:{number} among {listed(gpus)}{hidden}", _others(gpus)
        )
    return gpus[int(number)]


def _others(gpus: list[Device]) -> str:
    """Return what to write instead."""
    names = [f"cuda:{device.number}" for device in gpus if device.usable]
    return f"Choose {' or '.join(names)}." if names else "Choose another backend with --backend."


def _check_torch(device: Device) -> None:
    """Raise BackendUnavailable if torch cannot use what the driver has."""
    built = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        raise BackendUnavailable(
            f"{built} is built without CUDA, so it cannot use {device.name}",
            "Install a torch that is built for CUDA.",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason includes their text
        usable, count = torch.cuda.is_available(), torch.cuda.device_count()
    if not usable:
        raise BackendUnavailable(
            f"{built}, built for CUDA {torch.version.cuda}, cannot use {device.name}: {_why_not()}",
            "Update the NVIDIA driver, or install a torch that is built for an older CUDA.",
        )
    if device.number >= count:
        raise BackendUnavailable(
            f"{built} sees {count} of the driver's devices, cuda:{device.number} is not among them",
            f"Look at {VISIBLE}, and choose another.",
        )


def _why_not() -> str:
    """Return the first line of torch's error when it is made to use a GPU."""
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return "it finds none"
