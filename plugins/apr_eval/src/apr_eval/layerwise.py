"""Runs a model layer by layer over many sequences: the weights of one layer are in memory at once.

All sequences go through a matrix before the next one is read. What stays is a row of hidden values
for each token, so that memory is that of a layer and of the text, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import AprFile, Layer, State, StateMakers, TensorEntry, Weight
from apr_core.runtime import (
    Binder,
    ImportPlan,
    WeightLoader,
    build_metadata,
    checked_loader,
    family_config,
    find_source,
    foreign_kernels,
    get_registry,
    make_backend,
    make_step,
    plan_import,
    plugin_ops,
    state_makers,
)

Array = Any
Watch = Callable[[Weight, tuple[Any, ...]], None]  # (a matrix, what its op is given before it)
Progress = Callable[[int, int], None]  # (rounds done, of how many)
LOGITS = 1 << 24  # that are computed at once


class SourceFile:
    """A checkpoint's tensors, in their own formats, as a loader reads those of an .apr file."""

    def __init__(self, plan: ImportPlan) -> None:
        self.checkpoint, self.metadata = plan.checkpoint, build_metadata(plan)
        self.tensors = {
            a.rule.name: TensorEntry(
                a.rule.name, a.spec.name, a.spec.dtype_id or 0, a.rule.shape, 0, a.source.nbytes,
                a.spec, a.source.file,
            )
            for a in plan.assignments
        }  # fmt: skip

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes [nbytes]."""
        raw: NDArray[np.uint8] = self.checkpoint.read_raw(name)
        return raw

    def drop_pages(self, name: str) -> None:
        """Do nothing: what was read is no page of a file."""


class Watching(Binder):
    """A binder that tells what every matrix is multiplied with.

    Ops that stand for several are run by their bodies, so that none hides a product.
    """

    watch: Watch | None = None

    def weight(self, *args: Any) -> Weight:
        """Upload a matrix whose ops are watched."""
        weight = super().weight(*args)
        if self.watch:
            for use in args[1]:
                setattr(weight, use, partial(self._told, getattr(weight, use)))
        return weight

    def _told(self, run: Callable[..., Any], *args: Any) -> Any:
        assert self.watch
        self.watch(args[-1], args[:-1])
        return run(*args)

    def _bound(self, name: str, format: str = "*", generic: bool = False) -> Callable[..., Any]:
        if self.watch and self.table[name].is_composite:
            return partial(self.table[name].body, self.ops)
        return super()._bound(name, format, generic)


class _Held:
    """Weights by layer and role. A matrix that is loaded replaces those of other layers."""

    def __init__(self, loader: WeightLoader) -> None:
        self.loader = loader
        self.matrices: dict[tuple[int | None, str], Weight] = {}
        self.others: dict[tuple[int | None, str], Array] = {}

    def get(self, layer: int | None, role: str) -> Any:
        """Return a layer's weight, or one of no layer. Raises AttributeError for other roles."""
        parts, key = self.loader.parts, (layer, role)
        uses = self.loader.outside if layer is None else parts.matrices(layer)
        if role in uses:
            if key not in self.matrices:
                self.matrices = {k: w for k, w in self.matrices.items() if k[0] == layer}
                self.matrices[key] = self.loader.matrix(role, layer, uses[role])
            return self.matrices[key]
        if key not in self.others:
            constants = {} if layer is None else parts.constants(layer)
            vectors = parts.decoder.vectors if layer is None else parts.vectors(layer)
            if role in constants:
                self.others[key] = self.loader.binder.backend.upload(constants[role])
            elif role in vectors:
                self.others[key] = self.loader.vector(role, layer)
            else:
                raise AttributeError(role)
        return self.others[key]


class _Weights(SimpleNamespace):
    """A layer's weights, each loaded when it is first used."""

    def __init__(self, held: _Held, layer: int | None) -> None:
        self.__dict__["_get"] = partial(held.get, layer)

    def __getattr__(self, role: str) -> Any:
        return self.__dict__["_get"](role)


class _States:
    """The states of the layer that is at work, with a slot for each sequence."""

    def __init__(self, layers: Sequence[Layer], makers: StateMakers, slots: int) -> None:
        self.layers, self.makers, self.slots = layers, makers, slots
        self.present: tuple[int, State] | None = None

    def __getitem__(self, index: int) -> State:
        if self.present and self.present[0] == index:
            return self.present[1]
        self.close()
        state: State = self.layers[index].mixer.new_state(self.makers)
        self.present = index, state
        for slot in range(self.slots):
            state.open(slot)
        return state

    def close(self) -> None:
        """Free all slots."""
        if self.present:
            for slot in range(self.slots):
                self.present[1].close(slot)
        self.present = None


class LayerWise:
    """A model that is run layer by layer. Make one with `open_layerwise`."""

    def __init__(self, file: AprFile, config: Any, binder: Watching, loader: WeightLoader) -> None:
        self.file, self.config, self.binder, self.loader = file, config, binder, loader
        self.backend, self.held = binder.backend, _Held(loader)
        parts = loader.parts
        layers = [
            Layer(block, parts.mixers[i], parts.mlps[i], _Weights(self.held, i))
            for i, block in enumerate(parts.plan.blocks)
        ]
        self.decoder = parts.decoder(binder.ops, parts.plan, layers, _Weights(self.held, None))

    def hidden(
        self, sequences: Sequence[Sequence[int]], progress: Progress | None = None
    ) -> list[Array]:
        """Return the hidden states [T, hidden] of each sequence of ids, after the final norm."""
        makers = state_makers(self.backend, "f32", max(map(len, sequences)))
        states: Any = _States(self.decoder.layers, makers, len(sequences))
        upload, runs = self.backend.upload, []
        for slot, ids in enumerate(sequences):
            step = make_step([(slot, len(ids), 0)], upload)
            runs.append(self.decoder.slices(upload(np.asarray(ids, np.int64)), step, states))
        ended: dict[int, Array] = {}
        rounds, total = 0, 2 * len(self.decoder.layers)
        while len(ended) < len(runs):
            for i, run in enumerate(runs):
                try:
                    next(run)
                except StopIteration as end:
                    ended[i] = end.value
            rounds += 1
            if progress:
                progress(min(rounds, total), total)
        states.close()
        return [ended[i] for i in range(len(runs))]

    def logits(self, hidden: Sequence[Array]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits [rows, vocab] of hidden states, some rows at a time, in order."""
        rows = max(1, LOGITS // self.config.vocab_size)
        for states in hidden:
            for start in range(0, states.shape[0], rows):
                yield self.backend.download(self.decoder.logits(states[start : start + rows]))


@contextmanager
def opened(model: str) -> Iterator[tuple[AprFile, ImportPlan | None]]:
    """Open an .apr file, or a checkpoint: a directory, a file that a plugin opens, or a URL.

    Yields what has its tensors and metadata, and how a checkpoint would be imported as it is.
    Raises NotFound, FormatError, ContractError or PluginError.
    """
    if Path(model).suffix == ".apr":
        with AprFile.open(Path(model)) as file:
            yield file, None
    else:
        registry = get_registry()
        source = find_source(model, registry)
        plan = plan_import(source, recipe=None, arch=None, registry=registry)
        yield cast("AprFile", SourceFile(plan)), plan  # of which tensors and metadata are read


@contextmanager
def open_layerwise(
    model: str, backend: str | None = None, threads: int | None = None, watch: Watch | None = None
) -> Iterator[LayerWise]:
    """Open what `opened` opens to be run, in the formats that it has.

    `watch` is called before each product with a matrix and what is multiplied with it. Raises what
    `opened` does, or BackendError.
    """
    registry = get_registry()
    with opened(model) as (file, plan):
        if plan:
            family, config = plan.family, plan.config
        else:
            name = str(file.metadata.get("apr.family") or file.metadata.get("architecture"))
            family = registry.make("family", name)
            config = family_config(family, file)
        named = backend or registry.best_backend()
        device = make_backend(registry, named, threads)
        foreign = foreign_kernels(registry, registry.backend(named)[0].declaration.name)
        layout = family.plan(config)
        binder = Watching(device, plugin_ops(registry, layout), foreign)
        binder.watch = watch
        loader = checked_loader(file, family.contract(), config, layout, registry, binder)
        yield LayerWise(file, config, binder, loader)
