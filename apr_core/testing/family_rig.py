"""What the checks of a model family share: its configuration, its tiny model, and the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.contract import Contract
from apr_core.model.model import Model
from apr_core.modelspec import FamilyPlugin, ModelConfig
from apr_core.testing import running
from apr_core.testing.mixer_rig import difference
from apr_core.testing.oracle import Oracle
from apr_core.testing.plugin import PluginConformance
from apr_core.testing.tiny import random_weights, text_layout, tiny_config

Floats = NDArray[np.float32]


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

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        rng = np.random.default_rng([seed, count])
        ids: list[int] = rng.integers(0, self.config.vocab_size, count).tolist()
        return ids

    def assert_same(self, actual: Floats, expected: Floats, what: str) -> None:
        """Fail if logits [T, vocab] differ by more than the tolerance."""
        found = difference(actual, expected)
        assert found < self.tolerance, (
            f"{what}: logits differ by {found:.1e} of their standard deviation, at most "
            f"{self.tolerance:.0e} is rounding"
        )

    @property
    def oracle(self) -> Oracle:
        """The transformers model with the same weights; the check is skipped without it."""
        return self.kept("oracle", self._make_oracle)

    def _make_oracle(self) -> Oracle:
        hf = self.hf
        name = self.transformers or str(next(iter(hf.get("architectures") or ()), ""))
        return Oracle(name, hf)
