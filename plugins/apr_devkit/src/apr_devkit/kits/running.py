"""A family's tiny model: its files, a backend that runs here, and its logits piece by piece."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError
from apr_core.format import AprFile, to_float32
from apr_core.model.loading import make_backend
from apr_core.model.model import Model, load
from apr_core.registry import Registry
from apr_devkit.kits.reference_backend import NAME as REFERENCE
from apr_devkit.kits.reference_backend import with_reference
from apr_devkit.kits.tiny import tiny_apr

Floats = NDArray[np.float32]
REMOVED: Any = object()


class Tiny:
    """The tiny model of a family as files, made when they are first asked for."""

    def __init__(
        self, registry: Registry, family: str, hf: Mapping[str, Any], folder: Path
    ) -> None:
        self.registry, self.family, self.hf, self.folder = registry, family, hf, folder
        self._files: dict[str, Path] = {}

    def path(self, recipe: str) -> Path:
        """The .apr in that recipe."""
        if recipe not in self._files:
            directory = self.folder / recipe
            made = tiny_apr(
                self.family, directory, recipe, config=self.hf, registry=self.registry
            )  # fmt: skip
            self._files[recipe] = made
        return self._files[recipe]

    def generation(self) -> dict[str, Any]:
        """generation_config.json of the checkpoint."""
        beside = self.path("f32").parent / "checkpoint" / "generation_config.json"
        found: dict[str, Any] = json.loads(beside.read_text("utf-8"))
        return found

    def read_back(self, recipe: str) -> dict[str, Floats]:
        """Every tensor of the .apr as float32."""
        with AprFile.open(self.path(recipe)) as file:
            return {
                name: to_float32(np.array(file.raw(name)), entry.format, entry.shape)
                for name, entry in file.tensors.items()
            }

    def load(self, backend: str = "") -> Model:
        """The model in float32 on that backend, or on the best that runs here."""
        registry = with_reference(self.registry)
        name = backend or usable_backend(self.registry)
        return load(self.path("f32"), name, registry=registry, kv_type="f32")


def usable_backend(registry: Registry) -> str:
    """The best backend that can be made on this machine, as a load chooses it, else `reference`."""
    for name in registry.backends_by_score():
        try:
            make_backend(registry, name, None)
        except AprError:
            continue  # its own kit says why
        return name
    return REFERENCE


def same_bits(model: Model) -> bool:
    """Whether its backend promises the same bits however a prompt is batched, and cut at 64s.

    The promise is about its kernels: it says nothing of references.
    """
    promised = model.backend.bitwise_rows
    return promised and all(b.via != "reference" for b in model.report.bound.values())


@contextmanager
def slots(model: Model, count: int) -> Iterator[tuple[int, ...]]:
    """Slots for new sequences, closed again at the end."""
    opened = tuple(model.new_slot() for _ in range(count))
    try:
        yield opened
    finally:
        for slot in opened:
            model.free_slot(slot)


def logits(model: Model, *pieces: Sequence[int]) -> Floats:
    """Logits of every token of a sequence that is fed piece by piece: [T, vocab]."""
    with slots(model, 1) as (slot,):
        return np.concatenate([model.forward([(slot, ids)], all_rows=True) for ids in pieces])


def last(model: Model, *pieces: Sequence[int]) -> Floats:
    """Logits of the last token only: [1, vocab]."""
    with slots(model, 1) as (slot,):
        return [model.forward([(slot, ids)]) for ids in pieces][-1]


def copy_of(hf: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that may be changed."""
    return copy.deepcopy(dict(hf))


def leaves(hf: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The key paths of everything in a config.json that is no object."""
    for key, value in hf.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def replaced(hf: Mapping[str, Any], path: Sequence[str], value: Any = REMOVED) -> dict[str, Any]:
    """A copy with another value at the path, or without it."""
    changed = copy_of(hf)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def value_at(hf: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value at a key path."""
    found: Any = hf
    for key in path:
        found = found[key]
    return found
