"""What transformers computes, in float32, with the weights of a tiny checkpoint.

Imported by nobody who does not ask: torch and transformers are loaded inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.family.contract import Contract
from apr_core.family.modelspec import ModelConfig
from apr_devkit.kits.checks import skip

Floats = NDArray[np.float32]


class Oracle:
    """The transformers model of a config.json. `shapes` are its tensors' by name."""

    def __init__(self, class_name: str, hf: Mapping[str, Any]) -> None:
        self._torch, model_class = _imported(class_name)
        config = model_class.config_class.from_dict(dict(hf))
        self._model = model_class._from_config(config, attn_implementation="eager")
        self._model = self._model.float().eval()
        state = self._model.state_dict()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def take(
        self, weights: Mapping[str, Floats], contract: Contract, config: ModelConfig, layout: str
    ) -> None:
        """Take the weights of a checkpoint in that layout, under the names of its own."""
        own = contract.rules(config, contract.detect_layout(self.shapes))
        theirs = contract.rules(config, layout)
        tensors = {
            to.name: self._torch.from_numpy(weights[since.name].copy())
            for to, since in zip(own, theirs, strict=True)
        }
        loaded = self._model.load_state_dict(tensors, strict=False)
        assert not loaded.unexpected_keys, f"transformers lacks {loaded.unexpected_keys}"
        self._model.tie_weights()

    def logits(self, ids: Sequence[int]) -> Floats:
        """ids [T] -> float32 [T, vocab]."""
        with self._torch.inference_mode():
            found = self._model(self._torch.tensor([list(ids)])).logits[0]
        logits: Floats = found.float().numpy()
        return logits


def _imported(class_name: str) -> tuple[Any, Any]:
    """(torch, the model class), or the check is skipped."""
    try:
        import torch
        import transformers
    except ImportError as error:
        skip(f"needs torch and transformers as the oracle; {error.name} is not installed")
    found = getattr(transformers, class_name, None)
    if found is None:
        skip(f"transformers {transformers.__version__} has no {class_name}")
    return torch, found
