"""Scaling of rotary positions: GGUF's keys and its tensor of factors, and config.json's objects."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import AprError, FormatError, rope_frequencies
from apr_gguf.reader import Keys

FACTORS = "rope_freqs.weight"  # what each frequency is divided by
OWN = "rope_freqs"  # where a config keeps factors whose bits no rule gives
YARN = (
    ("rope.scaling.factor", "factor", float),
    ("rope.scaling.original_context_length", "original_max_position_embeddings", int),
    ("rope.scaling.yarn_attn_factor", "attention_factor", float),
    ("rope.scaling.yarn_beta_fast", "beta_fast", float),
    ("rope.scaling.yarn_beta_slow", "beta_slow", float),
)
OTHERS = ("mscale", "mscale_all_dim", "truncate")  # of YaRN, without a key
LLAMA3 = (1.0, 4.0, 8192)  # low and high frequency factor and context of all published models


def scaling_of(c: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object of a config.json that says how positions are scaled; {} if none does."""
    for key in ("rope_parameters", "rope_scaling"):
        part = c.get(key) or {}
        part = part.get("full_attention", part)  # where kinds of layers have one each
        kind = part.get("rope_type", part.get("type", "default"))
        if kind != "default":
            return {**part, "rope_type": kind}
    return {}


def rope_keys(c: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of an architecture for a config.json. Raises AprError for other methods."""
    values: dict[str, Any] = {"rope.freq_base": float(c["rope_theta"])}
    values["rope.dimension_count"] = c["head_dim"]
    scaling = scaling_of(c)
    kind = scaling.get("rope_type")
    if kind == "linear":
        values |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    elif kind == "yarn":
        if odd := [key for key in OTHERS if scaling.get(key) is not None]:
            raise AprError(f"YaRN's {odd[0]} has no key in GGUF that llama.cpp reads")
        before = {"original_max_position_embeddings": c["max_position_embeddings"]}
        given = {k: v for k, v in scaling.items() if v is not None}
        values["rope.scaling.type"] = kind
        values |= {k: t((before | given)[n]) for k, n, t in YARN if n in before | given}
    elif kind == "llama3":  # as factors; llama.cpp does not use the length
        length = int(scaling["original_max_position_embeddings"])
        values["rope.scaling.original_context_length"] = length
    elif kind:
        raise AprError(f"rope scaling {kind!r} has no form in GGUF")
    return values


def rope_of(keys: Keys) -> dict[str, Any]:
    """Return a config.json's base and scaling by the keys. Raises FormatError."""
    c: dict[str, Any] = {"rope_theta": keys.own("rope.freq_base", float, 10_000.0)}
    old = keys.own("rope.scale_linear", float, 1.0)
    factor = keys.own("rope.scaling.factor", float, old)
    kind = keys.own("rope.scaling.type", str, "linear" if factor not in (0, 1) else "none")
    if kind == "none":
        return c
    if kind == "linear":
        return (
            c if factor in (0, 1) else c | {"rope_scaling": {"rope_type": kind, "factor": factor}}
        )
    if kind != "yarn":
        raise FormatError(
            f"{keys.path}: rope scaling {kind!r} is not supported, only linear, yarn and llama3",
            "Import the original checkpoint, if its family is installed: apr plugins list.",
        )
    values = {name: keys.own(key, form, None) for key, name, form in YARN}
    given = {name: value for name, value in values.items() if value is not None}
    return c | {"rope_scaling": {"rope_type": kind, **given}}


def factors_of(c: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Return what GGUF's tensor of factors holds for a config.json; None if it needs none."""
    scaling = scaling_of(c)
    if scaling.get("rope_type") != "llama3":
        return None
    if OWN in scaling:
        return np.array(scaling[OWN], np.float32)
    return _factors(c, scaling)


def _factors(c: Mapping[str, Any], scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    theta, size = float(c["rope_theta"]), int(c["head_dim"])
    plain, _ = rope_frequencies(theta, size)
    scaled, _ = rope_frequencies(theta, size, {**scaling, "method": "wavelength"})
    return plain / scaled


def llama3_of(
    keys: Keys, c: Mapping[str, Any], factors: NDArray[np.float32]
) -> dict[str, dict[str, Any]]:
    """Return the rope_scaling that gives these factors. Raises FormatError if none does."""
    length = keys.own("rope.scaling.original_context_length", int, LLAMA3[2])
    guesses = [(*LLAMA3[:2], length), LLAMA3]
    usable = factors.shape == (c["head_dim"] // 2,) and bool((factors >= 1).all())
    with np.errstate(all="ignore"):
        for low, high, before in [*guesses, *_fitted(c, factors)] if usable else ():
            scaling = {
                "rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": low,
                "high_freq_factor": high, "original_max_position_embeddings": before,
            }  # fmt: skip
            made = _factors(c, scaling)
            if np.allclose(made, factors, rtol=1e-5):
                exact = np.array_equal(made, factors)
                return {"rope_scaling": scaling | ({} if exact else {OWN: factors.tolist()})}
    raise FormatError(
        f"{keys.path}: the tensor {FACTORS!r} scales positions by no rule that is known",
        "Import the original checkpoint: its config.json says how.",
    )


def _fitted(c: Mapping[str, Any], factors: NDArray[np.float32]) -> list[tuple[float, float, int]]:
    """Return low and high frequency factor and length, from factors between the two ends.

    Between them 1 / factor is linear in the frequency; only ratios matter, so low is 1.
    """
    largest = float(factors.max())
    between = (factors > 1) & (factors < largest)
    if between.sum() < 2:
        return []
    turns = rope_frequencies(float(c["rope_theta"]), int(c["head_dim"]))[0][between] / (2 * pi)
    smooth = (1 / factors[between].astype(np.float64) - 1 / largest) / (1 - 1 / largest)
    slope, start = np.polyfit(turns.astype(np.float64), smooth, 1)
    high = round(1 - 1 / start, 3) if start else np.inf
    if not 1 < high < 1e6:
        return []
    return [(1.0, float(high), round(slope * (high - 1)))]
