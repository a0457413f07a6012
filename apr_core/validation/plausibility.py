"""Whether values look like weights, given what the contract says each tensor is.

The bounds are wide on purpose: a freshly initialised model must pass, and so must any trained one;
what fails is a tensor that was lost, overwritten, scaled or stored in the wrong place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from math import sqrt
from statistics import median

from apr_core.family.contract import Contract, TensorRule
from apr_core.validation.statistics import TensorStats

# std * sqrt(fan_in) is near 1 for the usual initialisations, 0.3 to 3 for std 0.02 at common
# widths, and stays within a factor of ten of that in training.
SPREAD = (1e-3, 1e2)
NORM_SCALE = (1e-3, 1e3)  # root mean square of what a norm multiplies by
LAYER_FACTOR = 100.0  # between a layer's std and the median of that role over the layers
ZERO_ROWS = 0.25  # share of dead outputs of a matrix
LOOKUPS = ("embedding", "lm_head")  # their rows are tokens, and unused tokens may be zero


Found = Mapping[str, tuple[TensorRule, TensorStats]]  # by tensor name


def implausible(contract: Contract, found: Found) -> list[str]:
    """What is not plausible about the tensors, one line each."""
    problems: list[str] = []
    for name, (rule, stats) in found.items():
        if stats.finite:
            problems += [f"{name} {what}" for what in _one(contract, rule, stats)]
    return problems + list(_layers(found.values()))


def _one(contract: Contract, rule: TensorRule, stats: TensorStats) -> Iterator[str]:
    if len(rule.shape) == 2 and stats.count > 1:
        yield from _matrix(rule, stats)
    elif rule.role.endswith("norm") or ("norm" in rule.role and rule.group != "model"):
        offset = 0.0 if rule.role in contract.plain_norms else contract.norm_offset
        scale = sqrt((offset + stats.mean) ** 2 + stats.std**2)
        if not NORM_SCALE[0] <= scale <= NORM_SCALE[1]:
            yield f"multiplies by {scale:.3g} (root mean square), which no trained norm does"


def _matrix(rule: TensorRule, stats: TensorStats) -> Iterator[str]:
    if stats.constant:
        yield "is all zero" if stats.minimum == 0 else f"is {stats.minimum:g} everywhere"
        return
    if rule.role in LOOKUPS:
        return
    if stats.zero_rows > ZERO_ROWS * stats.rows:
        yield f"has {stats.zero_rows} of {stats.rows} rows all zero"
    spread = stats.std * sqrt(rule.shape[1])
    if not SPREAD[0] <= spread <= SPREAD[1]:
        yield (
            f"has standard deviation {stats.std:.3g} at fan-in {rule.shape[1]}: times its root "
            f"{spread:.3g}, expected {SPREAD[0]:g} to {SPREAD[1]:g}"
        )


def _layers(found: Iterable[tuple[TensorRule, TensorStats]]) -> Iterator[str]:
    """Matrices of one role whose spread is far from that of the other layers."""
    roles: dict[str, list[tuple[TensorRule, float]]] = defaultdict(list)
    for rule, stats in found:
        if rule.layer is not None and len(rule.shape) == 2 and stats.std > 0:
            roles[rule.role].append((rule, stats.std))
    for members in roles.values():
        middle = median(std for _, std in members)
        for rule, std in members if len(members) >= 3 else []:
            if not 1 / LAYER_FACTOR <= std / middle <= LAYER_FACTOR:
                yield f"{rule.name} has standard deviation {std:.3g}, other layers {middle:.3g}"
