"""From an open .apr file to a decoder on a backend: contract, plan, weights, binding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.declarations import Quantizer
from apr_core.discovery import missing_requirements
from apr_core.errors import BackendError, BackendUnavailable, FormatError
from apr_core.family.contract import Contract, Resolution
from apr_core.family.modelspec import ModelConfig, Plan
from apr_core.format import (
    NATIVE,
    AprFile,
    TensorEntry,
    check_declared,
    check_stack,
    decode_tensor,
    quantizer_for,
    to_float32,
)
from apr_core.format.dtypes import LEGACY
from apr_core.model.decoder import Decoder, Layer, Weights
from apr_core.model.parts import Parts, check_claims, check_roles, plugin_ops
from apr_core.model.state import KVType
from apr_core.model.trial import ReferenceBackend, named, shapes_only, try_step
from apr_core.ops import CORE_OPS
from apr_core.ops.binding import (
    DENSE,
    BackendPlugin,
    Binder,
    BlockLayout,
    BoundOps,
    ForeignKernel,
    HostMatrix,
    Weight,
)
from apr_core.registry import Owned, Registry

Q8_GROUP = 32  # values that share a scale
Progress = Callable[[int, int], None]  # (bytes of matrices uploaded, of how many)


def make_backend(registry: Registry, name: str, threads: int | None) -> BackendPlugin:
    """Make the backend, and device, of that name. Raises PluginNotFound or BackendError."""
    owned, device = registry.backend(name)
    check_probe(registry, owned, name)
    factory = registry.load(owned)
    backend = factory(threads=threads, **_device_option(factory, name, device))
    if not isinstance(backend, BackendPlugin):
        raise BackendError(
            f"backend {name!r} of {owned.distribution} makes a {type(backend).__name__}, expected "
            "an apr_core.plugin.BackendPlugin",
            "Its class has to derive from that: tell the plugin's author.",
        )
    return backend


def _device_option(factory: Callable[..., Any], name: str, device: str | None) -> dict[str, str]:
    """Return the device option for a backend's target, empty without one. Raises BackendError."""
    if device is None:
        return {}
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # written in C, without a signature
        parameters = {}.values()
    if not any(p.name == "device" or p.kind is p.VAR_KEYWORD for p in parameters):
        bare = name.rpartition(":")[0]
        raise BackendError(
            f"backend {bare!r} has no devices to choose from, so there is no {name}",
            f"Write {bare}.",
        )
    return {"device": device}


def check_probe(registry: Registry, owned: Owned, name: str) -> None:
    """Ask a backend's probe whether this machine can run it. Raises BackendUnavailable."""
    if missing_requirements([owned.declaration]):
        return  # the registry's own error names what to install
    score, reason = registry.probe(owned)
    if score <= 0:
        raise BackendUnavailable(
            f"backend {name!r} cannot run on this machine: {reason}",
            "Choose another `backend`; `apr plugins list` shows what is installed.",
        )


def foreign_kernels(registry: Registry, backend: str) -> dict[tuple[str, str], ForeignKernel]:
    """Return the kernels that installed plugins bring for this backend, through `apr_kernels`."""
    kernels: dict[tuple[str, str], ForeignKernel] = {}
    for owned in registry.declarations("kernel"):
        kernel = owned.declaration
        if kernel.backend != backend:
            continue
        key = (kernel.op, kernel.weight)
        if key in kernels:
            raise BackendError(
                f"{kernels[key].distribution} and {owned.distribution} both bring a kernel for "
                f"{kernel.op}[{kernel.weight}] on backend {backend!r}",
                "Disable one of them: APR_PLUGINS_BLOCK=<distribution>.",
            )
        kernels[key] = ForeignKernel(kernel.target, owned.distribution)
    return kernels


class WeightLoader:
    """Uploads a file's tensors by role, and reports beforehand what they will take.

    `outside` are the matrices of no layer: their roles, and the ops that use them.
    """

    def __init__(
        self,
        file: AprFile,
        resolution: Resolution,
        registry: Registry,
        binder: Binder,
        parts: Parts,
        tied: bool,
        progress: Progress | None = None,
    ) -> None:
        self.file, self.resolution = file, resolution
        self.registry, self.binder, self.parts = registry, binder, parts
        self.outside = dict(parts.decoder.matrices)
        if tied:
            self.outside["embedding"] += self.outside.pop("lm_head")
        self._quantizer = partial(registry.make, "quantizer")
        self._progress, self._done = progress, 0
        self._total = sum(e.nbytes for e, _ in self.matrices()) if progress else 0
        self._report(0)

    def _report(self, nbytes: int) -> None:
        """Report `nbytes` more bytes of matrices as uploaded."""
        self._done += nbytes
        if self._progress:
            self._progress(self._done, self._total)

    def entry(self, role: str, layer: int | None = None) -> TensorEntry:
        """Return the tensor in a role."""
        return self.file.tensors[self.resolution.name_of(role, layer)]

    def matrices(self) -> Iterator[tuple[TensorEntry, tuple[str, ...]]]:
        """Yield every matrix, and the ops that use it."""
        for role, uses in self.outside.items():
            yield self.entry(role), uses
        for index in range(len(self.parts.mixers)):
            for role, uses in self.parts.matrices(index).items():
                yield self.entry(role, index), uses

    def expect(self) -> None:
        """Report the expected format of every matrix, before any is uploaded."""
        for entry, uses in self.matrices():
            self.binder.expect(*self._read_as(entry), entry.shape, entry.nbytes, uses)

    def _decode(self, format: str, raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
        """Decode rows to float32. The codec is imported only now; kernels need none."""
        if format in NATIVE:
            return to_float32(raw.reshape(-1), format, (raw.shape[0], cols))
        decoded: NDArray[np.float32] = self._quantizer(format).decode(raw, cols)
        return decoded

    def matrix(self, role: str, layer: int | None, uses: Iterable[str]) -> Weight:
        """Upload a tensor [.., rows, cols] for the ops in `uses`, packed if kernels read it."""
        entry = self.entry(role, layer)
        raw, rows = self.file.raw(entry.name), prod(entry.shape[:-1])
        format, layout = self._read_as(entry)
        if entry.format in LEGACY:
            raw = decode_tensor(entry, raw, self._quantizer).view(np.uint8)
        decode = partial(self._decode, format)
        matrix = HostMatrix(entry.name, format, entry.shape, raw.reshape(rows, -1), decode, layout)
        weight = self.binder.weight(matrix, uses)
        self._report(entry.nbytes)
        return weight

    def _read_as(self, entry: TensorEntry) -> tuple[str, BlockLayout | None]:
        """Return the format in which a backend is given a matrix, and the layout it declares."""
        if entry.format in LEGACY:  # no backend reads these in place, and no plugin brings them
            return DENSE, None
        if entry.format in NATIVE:
            return entry.format, None
        find = partial(self.registry.get, "quantizer")
        declared: Quantizer = quantizer_for(entry, find).declaration
        check_declared(entry, declared)  # kernels trust the block size: a file may not redefine it
        check_stack(entry.name, entry.shape, entry.format, declared.block)
        layout, block, nbytes = declared.layout, declared.block, declared.bytes_per_block
        if layout is None:
            return entry.format, None
        layout.check(block, nbytes)
        return entry.format, BlockLayout(layout, block, nbytes)

    def kept_as(self, entry: TensorEntry, uses: tuple[str, ...]) -> tuple[str, BlockLayout | None]:
        """Return a matrix's format on the backend, and its blocks' layout if declared."""
        format, layout = self._read_as(entry)
        uploaded = self.binder.kept_as(format, layout, uses)
        return uploaded, layout if uploaded == format else None

    def vector(self, role: str, layer: int | None = None) -> Any:
        """Upload any other tensor as a dense float32 array."""
        entry = self.entry(role, layer)
        values = decode_tensor(entry, self.file.raw(entry.name), self._quantizer)
        return self.binder.backend.upload(values)

    def layer(self, index: int) -> Layer:
        """Upload all weights of one layer."""
        parts = self.parts
        matrices = parts.matrices(index).items()
        weights: dict[str, Any] = {r: self.matrix(r, index, uses) for r, uses in matrices}
        weights |= {role: self.vector(role, index) for role in parts.vectors(index)}
        upload = self.binder.backend.upload
        weights |= {name: upload(array) for name, array in parts.constants(index).items()}
        block = parts.plan.blocks[index]
        return Layer(block, parts.mixers[index], parts.mlps[index], Weights(**weights))

    def decoder(self, ops: BoundOps, only: Iterable[int] | None = None) -> Decoder:
        """Upload everything and return the decoder, with all layers or those in `only`."""
        outside: dict[str, Any] = {r: self.matrix(r, None, u) for r, u in self.outside.items()}
        some = range(len(self.parts.mixers)) if only is None else only
        layers = [self.layer(index) for index in some]
        outside |= {role: self.vector(role) for role in self.parts.decoder.vectors}
        return self.parts.decoder(ops, self.parts.plan, layers, Weights(**outside))


class ZeroLoader(WeightLoader):
    """A loader for trials: dense tensors are zeros, matrices only shapes."""

    def matrix(self, role: str, layer: int | None, uses: Iterable[str]) -> Weight:
        """Return a stand-in without values."""
        entry = self.entry(role, layer)
        brought = {use: self.binder.table[use] for use in uses if use not in CORE_OPS}
        return shapes_only(entry.name, entry.shape, brought)

    def vector(self, role: str, layer: int | None = None) -> Any:
        """Return zeros."""
        entry = self.entry(role, layer)
        return named(entry.name, entry.shape)


def choose_kv_type(
    asked: KVType | None, embedding: str, backend: BackendPlugin, config: ModelConfig
) -> KVType:
    """Return the precision of keys and values: as asked, or by the embedding's format.

    Raises BackendError if the backend does not support it for this model.
    """
    kv_type: KVType = asked or ("f32" if embedding == DENSE else "f16")
    known = backend.kv_types
    if kv_type not in known:
        raise BackendError(
            f"backend {backend.name!r} keeps keys and values in {', '.join(known)}, not {kv_type}",
            "Choose another kv_type.",
        )
    if kv_type == "q8" and config.head_dim % Q8_GROUP:
        raise BackendError(
            f"kv_type q8 needs heads of a multiple of {Q8_GROUP} values, found {config.head_dim}",
            "Choose kv_type f16.",
        )
    return kv_type


def checked_loader(
    file: AprFile,
    contract: Contract,
    config: ModelConfig,
    plan: Plan,
    registry: Registry,
    binder: Binder,
    progress: Progress | None = None,
) -> WeightLoader:
    """Return a loader, after a trial of the plan on shapes. Raises ContractError."""
    resolution = contract.check(config, {name: e.shape for name, e in file.tensors.items()})
    parts, tied = Parts(registry, plan), config.tied_embeddings
    check_roles(resolution, parts, config.hidden_size)
    loader = WeightLoader(file, resolution, registry, binder, parts, tied, progress)
    loader.expect()
    fresh, trial = Parts(registry, plan), Binder(ReferenceBackend(), binder.table)
    zeros = ZeroLoader(file, resolution, registry, trial, fresh, tied)
    used = try_step(binder, partial(zeros.decoder, only=fresh.kinds()), registry.owner_of)
    check_claims(contract, config, parts, used)
    return loader


def build_decoder(
    file: AprFile,
    contract: Contract,
    config: ModelConfig,
    plan: Plan,
    registry: Registry,
    backend: BackendPlugin,
    backend_name: str,
    context: int,
    kv_type: KVType | None = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> tuple[Decoder, Binder, KVType]:
    """Check the file's tensors against the contract, bind the ops, upload the weights.

    Also chooses the precision of keys and values if `kv_type` is None. Before anything is uploaded,
    raises ContractError (also for a claim that the plan contradicts), and BackendError if weights
    and `context` tokens do not fit the device, or if `strict` and something is slow or large.
    """
    binder = Binder(backend, plugin_ops(registry, plan), foreign_kernels(registry, backend_name))
    loader = checked_loader(file, contract, config, plan, registry, binder, progress)
    if strict:
        binder.report.refuse_fallbacks()
    embedding, _ = loader.kept_as(loader.entry("embedding"), loader.outside["embedding"])
    kv_type = choose_kv_type(kv_type, embedding, backend, config)
    free = backend.capacity()
    if free is not None:
        from apr_core.model.planning import check_memory, demand_of  # devices with their own memory

        check_memory(file.path, backend, free, demand_of(loader, config, kv_type), context)
    with backend.loading():
        return loader.decoder(binder.ops), binder, kv_type


def family_config(family: Any, file: AprFile) -> ModelConfig:
    """Return the configuration of the model in a file, from the config.json it carries."""
    hf = file.metadata.get("hf_config")
    if not isinstance(hf, dict):
        raise FormatError(
            f"{file.path}: metadata has no `hf_config` object, which says what the model is",
            "Import the checkpoint again with this version.",
        )
    config: ModelConfig = family.config(hf, file.metadata.get("apr.generation_config"))
    return config
