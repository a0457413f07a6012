"""What the checks of a model family share: its configuration, its tiny model, and the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.family.contract import Contract
from apr_core.family.modelspec import FamilyPlugin, ModelConfig
from apr_core.model.model import Model
from apr_devkit.kits import running
from apr_devkit.kits.checks import skip
from apr_devkit.kits.mixer_rig import difference
from apr_devkit.kits.oracle import Oracle
from apr_devkit.kits.plugin import PluginConformance
from apr_devkit.kits.tiny import random_weights, text_layout, tiny_config

Floats = NDArray[np.float32]
OTHER: dict[str, Callable[[float], float]] = {  # numbers that change logits, and no shape
    "rms_norm_eps": lambda eps: eps + 0.1,
    "rope_theta": lambda base: base / 100,
}


class FamilyKit(PluginConformance):
    """One model family. Kits derive from it; it has no checks of its own."""

    kind = "family"
    family: str = ""
    tiny_config: Mapping[str, Any] | None = None
    transformers: str = ""
    backend: str = ""
    tolerance: float = 5e-5
    parity: float = 2e-4

    @property
    def plugin_object(self) -> FamilyPlugin:
        """The family object."""
        made: FamilyPlugin = self.registry.make("family", self.owned.qualified)
        return made

    @property
    def hf(self) -> dict[str, Any]:
        """config.json of the tiny model, a copy."""
        found = self.tiny_config or tiny_config(self.plugin_object, self.name)
        return running.copy_of(found)

    @property
    def config(self) -> ModelConfig:
        """What the family reads from it."""
        return self.plugin_object.config(self.hf)

    @property
    def contract(self) -> Contract:
        """The family's contract."""
        return self.plugin_object.contract()

    @property
    def weights(self) -> dict[str, Floats]:
        """The tiny model's tensors by name, as `text_layout` calls them."""
        make = partial(random_weights, self.contract, self.config, text_layout(self.contract), 0)
        return self.kept("weights", make)

    @property
    def tiny(self) -> running.Tiny:
        """The tiny model's files."""
        make = partial(running.Tiny, self.registry, self.owned.qualified, self.hf, self.folder())
        return self.kept("tiny", make)

    @property
    def model(self) -> Model:
        """The tiny model in float32, loaded."""
        return self.kept("model", lambda: self.tiny.load(self.backend))

    @property
    def where(self) -> str:
        """The backend that the tiny model runs on, as failures name it."""
        return f"on backend {self.model.backend.name}"

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        rng = np.random.default_rng([seed, count])
        ids: list[int] = rng.integers(0, self.config.vocab_size, count).tolist()
        return ids

    def assert_same(self, actual: Floats, expected: Floats, what: str) -> None:
        """Fail if logits [T, vocab] differ by more than the tolerance."""
        found = difference(actual, expected)
        assert found < self.tolerance, (
            f"{what}, {self.where}: logits differ by {found:.1e} of their standard deviation, "
            f"at most {self.tolerance:.0e} is rounding"
        )

    @property
    def oracle(self) -> Oracle:
        """The transformers model, with random weights; the check is skipped without it."""
        return self.kept("oracle", partial(self._make_oracle, self.hf))

    @property
    def filled_oracle(self) -> Oracle:
        """The transformers model with the tiny model's weights."""
        return self.kept("filled oracle", partial(self.make_filled_oracle, self.hf))

    def make_filled_oracle(self, hf: Mapping[str, Any]) -> Oracle:
        """The same of another config.json with the same shapes."""
        made, contract = self._make_oracle(hf), self.contract
        made.take(self.weights, contract, self.config, text_layout(contract))
        return made

    def _make_oracle(self, hf: Mapping[str, Any]) -> Oracle:
        name = self.transformers or str(next(iter(hf.get("architectures") or ()), ""))
        return Oracle(name, hf)

    def other_constants(self) -> dict[str, dict[str, Any]]:
        """{key: the tiny model's config.json with another value of it}; skips if it has none."""
        found = {}
        for key, change in OTHER.items():
            hf = self.hf
            paths = [path for path in running.leaves(hf) if path[-1] == key]
            for path in paths:
                hf = running.replaced(hf, path, change(running.value_at(hf, path)))
            if paths:
                found[key] = hf
        return found or skip(f"its tiny config.json has none of {', '.join(OTHER)}")

    def logits_with(self, key: str, hf: Mapping[str, Any], ids: Sequence[int]) -> Floats:
        """Logits [T, vocab] of the tiny model's weights with that config.json."""
        folder = self.folder() / f"another {key}"
        tiny = running.Tiny(self.registry, self.owned.qualified, hf, folder)
        with tiny.load(self.backend) as model:
            return running.logits(model, ids)
