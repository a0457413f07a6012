"""Frequencies of rotary positions, also scaled for contexts longer than a model was trained on.

Linear: Chen et al., 2023. YaRN: Peng et al., 2023, section 3. By wavelength: low frequencies are
divided, high ones are not. As in transformers' modeling_rope_utils.py, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Scaling = Mapping[str, Any]
METHODS: dict[str, tuple[str, ...]] = {  # name -> numbers that it needs
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "wavelength": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip


def rope_frequencies(
    theta: float, dim: int, scaling: Scaling | None = None
) -> tuple[Floats, float]:
    """Return inverse frequencies float32 [dim / 2], and what rotated values are multiplied by.

    `scaling` is what `ConfigReader.rope_scaling` returned.
    """
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain = (1.0 / np.float32(theta) ** exponent).astype(np.float32)
    if not scaling:
        return plain, 1.0
    scaled: dict[str, Callable[[], Floats]] = {
        "linear": lambda: plain / np.float32(scaling["factor"]),
        "wavelength": lambda: _by_wavelength(plain, scaling),
        "yarn": lambda: _yarn(plain, theta, dim, scaling),
    }
    method = scaling["method"]
    return scaled[method](), _magnitude(scaling) if method == "yarn" else 1.0


def _by_wavelength(plain: Floats, s: Scaling) -> Floats:
    """Divide low frequencies by the factor, leave high ones, and go over smoothly between."""
    low, high = s["low_freq_factor"], s["high_freq_factor"]
    turns = s["original_max_position_embeddings"] / (2 * math.pi / plain)  # in the old context
    smooth = (turns - low) / (high - low)
    between = (1 - smooth) * plain / s["factor"] + smooth * plain
    long = np.where(turns < low, plain / s["factor"], plain)
    scaled: Floats = np.where((turns >= low) & (turns <= high), between, long).astype(np.float32)
    return scaled


def _yarn(plain: Floats, theta: float, dim: int, s: Scaling) -> Floats:
    """Divide low frequencies by the factor, along a ramp between two numbers of turns."""

    def dimension(turns: float) -> float:
        ratio = s["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(theta))

    low, high = dimension(s.get("beta_fast") or 32), dimension(s.get("beta_slow") or 1)
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 * (low == high)
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    scaled: Floats = (plain / s["factor"] * ramp + plain * (1 - ramp)).astype(np.float32)
    return scaled


def _magnitude(s: Scaling) -> float:
    """Return YaRN's factor of attention, which takes the place of a temperature."""

    def scale(mscale: float = 1.0) -> float:
        return 0.1 * mscale * math.log(s["factor"]) + 1.0 if s["factor"] > 1 else 1.0

    if s.get("attention_factor") is not None:
        return float(s["attention_factor"])
    if s.get("mscale") and s.get("mscale_all_dim"):
        return scale(s["mscale"]) / scale(s["mscale_all_dim"])
    return scale()
