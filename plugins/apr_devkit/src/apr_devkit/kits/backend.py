"""The kit for backends: arrays, every op and format, and the models of every installed family."""

from __future__ import annotations

from apr_devkit.kits.array_checks import ArrayChecks
from apr_devkit.kits.choice_checks import ChoiceChecks
from apr_devkit.kits.model_checks import ModelChecks
from apr_devkit.kits.op_checks import OpChecks


class BackendConformance(ModelChecks, OpChecks, ChoiceChecks, ArrayChecks):
    """Checks of one backend: it is compared with the reference bodies on NumPy.

        class TestMine(BackendConformance):
            backend = "mine"

    An error is a normalised mean square error; what is allowed stands with the cases of each op
    (`core_cases`, `packed_cases`, and what mixers bring). Other distributions' kernels for the
    backend are left out: `KernelConformance` checks those. A backend may have, beyond what
    `BackendPlugin` says, `bitwise_rows = True` if a row's result has the same bits alone and in
    any batch, and `memory() -> int`, the bytes its arrays take.
    """
