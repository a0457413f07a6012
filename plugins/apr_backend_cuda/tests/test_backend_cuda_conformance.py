"""The CUDA backend passes what every backend passes, interpreted where there is no GPU.

The kit is in two files, so that two processes may run it: whole models are in the other one.
"""

from __future__ import annotations

from apr_devkit.kits import BackendConformance
from apr_devkit.kits.backend import ArrayChecks, ChoiceChecks, ModelChecks
from apr_devkit.kits.checks import checks_of
from apr_devkit.kits.kernel import DeviceKit, OpChecks


class TestCuda(OpChecks, ChoiceChecks, ArrayChecks):
    backend = "cuda"


def test_the_two_files_leave_out_no_check_and_repeat_none():
    kits = (TestCuda, ModelChecks, BackendConformance, DeviceKit)
    here, there, every, shared = (set(checks_of(kit)) for kit in kits)
    assert here | there == every and here & there == shared
