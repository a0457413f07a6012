"""Fixtures of kits: backends of references alone, arrays of a state, and an oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import AprError, Backend, Contract, ModelConfig, State, StepFunction
from apr_core.runtime import ReferenceBackend, Registry, make_backend
from apr_devkit.kits.checks import skip
from apr_devkit.tiny import Floats, text_layout

# `reference` has no kernels: what fails on it is the plugin, not a kernel
REFERENCE = f"{ReferenceBackend.__module__}:{ReferenceBackend.__name__}"
NAME, RECORDING = ReferenceBackend.name, "recording"


class RecordingBackend(ReferenceBackend):
    """Claims to record steps, so that a load reports what prevents that."""

    name = RECORDING

    def capture(self, step: StepFunction, note: Callable[[str], None]) -> StepFunction:
        """Return the step as it is."""
        return step


def with_reference(registry: Registry) -> Registry:
    """Return a registry that also has the backends `reference` and `recording`."""
    own = [
        Backend(NAME, REFERENCE, summary="NumPy and the references"),
        Backend(RECORDING, f"{__name__}:RecordingBackend", summary="as if it could record"),
    ]
    return Registry([*registry.plugins, *Registry.from_declarations({"apr-core": own}).plugins])


def usable_backend(registry: Registry) -> str:
    """Return the best backend that can be made on this machine, else `reference`."""
    for name in registry.backends_by_score():
        with suppress(AprError):  # its own kit reports why
            make_backend(registry, name, None)
            return name
    return NAME


def leaves(hf: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the key paths of everything in a config.json that is not an object."""
    for key, value in hf.items():
        below = leaves(value, (*path, key)) if isinstance(value, Mapping) else [(*path, key)]
        yield from below


def arrays_in(thing: Any) -> Iterator[NDArray[Any]]:
    """Yield every array that a state holds, also in dicts, lists and tuples."""
    inner: Iterable[Any] = ()
    if isinstance(thing, np.ndarray):
        yield thing
    elif isinstance(thing, State):
        inner = vars(thing).values()
    elif isinstance(thing, Mapping | list | tuple):
        inner = thing.values() if isinstance(thing, Mapping) else thing
    for part in inner:
        yield from arrays_in(part)


class Oracle:
    """The transformers model of a config.json, in float32. `shapes` are its tensors'."""

    def __init__(self, class_name: str, hf: Mapping[str, Any]) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            skip(f"needs torch and transformers as the oracle; {error.name} is not installed")
        kind: Any = getattr(transformers, class_name, None)
        if kind is None:
            skip(f"transformers {transformers.__version__} has no {class_name}")
        config = kind.config_class.from_dict(dict(hf))
        self._torch: Any = torch
        self._model = kind._from_config(config, attn_implementation="eager").float().eval()
        self.shapes = {name: tuple(t.shape) for name, t in self._model.state_dict().items()}

    def take(self, weights: Mapping[str, Floats], contract: Contract, config: ModelConfig) -> None:
        """Copy the weights of a tiny checkpoint, under transformers' names."""
        own = contract.rules(config, contract.detect_layout(self.shapes))
        theirs = contract.rules(config, text_layout(contract))
        tensors = {
            to.name: self._torch.from_numpy(weights[since.name].copy())
            for to, since in zip(own, theirs, strict=True)
        }
        loaded = self._model.load_state_dict(tensors, strict=False)
        assert not loaded.unexpected_keys, f"transformers lacks {loaded.unexpected_keys}"
        self._model.tie_weights()

    def logits(self, ids: NDArray[np.int64]) -> Floats:
        """Return the logits, float32 [T, vocab], of ids [T]."""
        with self._torch.inference_mode():
            rows: Floats = self._model(self._torch.tensor(ids[None])).logits[0].float().numpy()
        return rows
