"""Reads config.json for families: values by name, with errors that name what is missing.

Scaled rotary positions follow transformers' modeling_rope_utils.py, in float32. Linear: Chen et
al., 2023. YaRN: Peng et al., 2023, section 3. By wavelength: only low frequencies are divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import ContractError
from apr_core.family.modelspec import ModelConfig

MISSING = object()
SIZES = {  # fields of a ModelConfig, and keys of config.json
    "hidden_size": "hidden_size", "num_heads": "num_attention_heads", "vocab_size": "vocab_size",
    "intermediate_size": "intermediate_size", "max_position_embeddings": "max_position_embeddings",
}  # fmt: skip
MAX_LAYERS = 4096
Floats = NDArray[np.float32]
Scaling = Mapping[str, Any]
METHODS: dict[str, tuple[str, ...]] = {  # name -> numbers that it needs
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "wavelength": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip
OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


class ConfigReader:
    """Typed access to a (nested) config.json. `nested` names the block tried first."""

    def __init__(self, hf: Mapping[str, Any], nested: str = "") -> None:
        self.top = hf
        self.block: Mapping[str, Any] = hf
        if nested and hf.get(nested) is not None:
            self.block = self._object(nested)

    def integer(
        self, key: str, default: Any = MISSING, minimum: int = 1, maximum: int = 2**31
    ) -> int:
        """Return a whole number from `minimum` to `maximum`. Raises ContractError."""
        value = self._get(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            raise ContractError(
                f"config.json: {key} is {value!r}, expected a whole number from {minimum} to "
                f"{maximum}"
            )
        return value

    def layers(self) -> int:
        """Return num_hidden_layers, within a range that cannot exhaust memory."""
        return self.integer("num_hidden_layers", maximum=MAX_LAYERS)

    def architecture(self, default: str) -> str:
        """Return the first of `architectures`."""
        listed = self.top.get("architectures")
        return str(listed[0]) if isinstance(listed, list) and listed else default

    def number(self, key: str, default: Any = MISSING) -> float:
        """Return a positive number. Raises ContractError."""
        return _positive(key, self._get(key, default))

    def _get(self, key: str, default: Any, inside: str = "") -> Any:
        """Return a value of the block, or first of the object `inside` it. Raises ContractError."""
        value = self.block.get(key)
        if inside:
            value = self._object(inside).get(key, value)
        value = default if value is None else value
        if value is MISSING:
            where = f", in {inside} or beside it" if inside else ""
            raise ContractError(
                f"config.json lacks {key!r}{where}",
                "Take the config.json the checkpoint came with.",
            )
        return value

    def _object(self, key: str) -> Mapping[str, Any]:
        """Return an object of the block, empty if there is none. Raises ContractError."""
        value = self.block.get(key) or {}
        if not isinstance(value, Mapping):
            raise ContractError(f"config.json: {key} must be an object")
        return value

    def rope(self, key: str, default: Any = MISSING) -> float:
        """Return a value of rope_parameters, or of the same name beside it (the older spelling)."""
        return _positive(key, self._get(key, default, inside="rope_parameters"))

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean, from the top level first, then from the block."""
        values = (source.get(key) for source in (self.top, self.block))
        value = next((v for v in values if v is not None), default)
        if not isinstance(value, bool):
            raise ContractError(f"config.json: {key} is {value!r}, expected true or false")
        return value

    def model(
        self,
        family: str,
        layer_types: Iterable[str],
        generation: Mapping[str, Any] | None,
        **own: Any,
    ) -> ModelConfig:
        """Read a model by the names that most families use; `own` are other fields.

        Heads of keys and values are those of queries, and their size is hidden_size over their
        number, where config.json does not say otherwise. Scaled rotary positions are refused,
        unless `own` has them; YaRN makes the context longer. Raises ContractError.
        """
        sizes = {name: self.integer(key) for name, key in SIZES.items() if name not in own} | own
        heads, hidden = sizes["num_heads"], sizes["hidden_size"]
        if (scaling := own.get("rope_scaling") or {}).get("method") == "yarn":
            longer = scaling["factor"] * scaling["original_max_position_embeddings"]
            sizes["max_position_embeddings"] = max(sizes["max_position_embeddings"], int(longer))
        usual: dict[str, Callable[[], Any]] = {
            "architecture": lambda: self.architecture(family),
            "num_kv_heads": lambda: self.integer("num_key_value_heads", heads),
            "head_dim": lambda: self.integer("head_dim", hidden // heads),
            "rope_theta": lambda: self.rope("rope_theta"),
            "rope_scaling": self.rope_scaling,
            "rms_norm_eps": lambda: self.number("rms_norm_eps"),
            "tied_embeddings": lambda: self.flag("tie_word_embeddings", False),
        }
        return ModelConfig(
            family=family,
            num_layers=self.layers(),
            layer_types=tuple(layer_types),
            stop_ids=self.stop_ids(generation),
            sampling=sampling_defaults(generation),
            **sizes,
            **{name: read() for name, read in usual.items() if name not in own},
        )

    def refuse(self, key: str, allowed: Iterable[Any], why: str) -> None:
        """Raise ContractError unless the value is absent, null or one of `allowed`."""
        for source in (self.top, self.block):
            value = source.get(key)
            if value is not None and value not in list(allowed):
                shown = value if isinstance(value, str | int | float) else "given"
                raise ContractError(f"config.json: {key} = {shown!r} is not supported: {why}")

    def rope_scaling(self, **kinds: str) -> dict[str, Any]:
        """Return the scaling of rotary positions, for `rope_frequencies`; {} if there is none.

        `kinds` are what config.json may ask for, and the METHODS that is:
        `rope_scaling(linear="linear", mine="wavelength")`. Raises ContractError for another kind,
        and for one that lacks a number.
        """
        part = dict(self._object("rope_scaling") or self._object("rope_parameters"))
        kind = str(part.get("rope_type", part.get("type", "default")))
        if kind == "default":
            return {}
        if kind not in kinds:
            raise ContractError(
                f"config.json: rope scaling {kind!r} is not supported, only "
                f"{', '.join(kinds) or 'plain rotary positions'}",
                "Remove the scaling from config.json: the original context length then holds.",
            )
        before, now = "original_max_position_embeddings", "max_position_embeddings"
        part[before] = self._get(before, None) or part.get(before) or self.block.get(now)
        for key in (*METHODS[kinds[kind]], *(k for k in OPTIONAL if part.get(k) is not None)):
            _positive(f"{kind} rope scaling's {key}", part.get(key))
        return part | {"method": kinds[kind]}

    def stop_ids(self, generation: Mapping[str, Any] | None) -> tuple[int, ...]:
        """Return the union of eos_token_id over config, its block and generation_config."""
        ids: list[Any] = []
        for source in (generation or {}, self.block, self.top):
            value = source.get("eos_token_id")
            ids += value if isinstance(value, list) else [value]
        return tuple(dict.fromkeys(i for i in ids if type(i) is int and i >= 0))


def _positive(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ContractError(f"config.json: {key} is {value!r}, expected a positive number")
    return float(value)


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "repetition_penalty")


def sampling_defaults(generation: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the model's own sampling values; do_sample false means temperature 0."""
    if not generation:
        return {}
    if generation.get("do_sample") is False:
        return {"temperature": 0.0}
    numbers = {k: generation[k] for k in SAMPLING if k in generation}
    return {k: v for k, v in numbers.items() if type(v) in (int, float)}


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
