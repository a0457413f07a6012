"""From an open .apr file to a decoder on a backend: contract, plan, weights, binding."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.binding import (
    DENSE,
    BackendPlugin,
    Binder,
    BlockLayout,
    BoundOps,
    ForeignKernel,
    HostMatrix,
    Weight,
)
from apr_core.contract import Contract, Resolution
from apr_core.declarations import Quantizer
from apr_core.errors import BackendError, FormatError
from apr_core.format import (
    NATIVE,
    AprFile,
    check_declared,
    decode_tensor,
    quantizer_for,
    to_float32,
)
from apr_core.format.dtypes import LEGACY
from apr_core.layouts import check as check_layout
from apr_core.model.decoder import Decoder, Layer, Mixer
from apr_core.model.widths import Tensors, check_mixers, check_outside
from apr_core.modelspec import Block, ModelConfig, Plan
from apr_core.ops import Op
from apr_core.registry import Registry

MLP_MATRICES = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_norm", "post_attention_norm")
DECODER_OPS = ("linear", "embed", "linears", "rms_norm", "add_rms_norm", "mlp")


@contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collection inside. Loading makes many objects and drops few, so to go over them
    again and again finds nothing, and took a tenth of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def make_backend(registry: Registry, name: str, threads: int | None) -> BackendPlugin:
    """The named backend. Raises PluginNotFound, BackendUnavailable or BackendError."""
    owned = registry.get("backend", name)
    if owned.declaration.probe:
        check_probe(name, owned.declaration.probe)
    backend: BackendPlugin = registry.load(owned)(threads=threads)
    return backend


def check_probe(name: str, probe: str) -> None:
    """Ask a backend's probe whether this machine can run it."""
    from importlib import import_module

    from apr_core.errors import BackendUnavailable

    module, _, attribute = probe.partition(":")
    score, reason = getattr(import_module(module), attribute)()
    if score <= 0:
        raise BackendUnavailable(
            f"backend {name!r} cannot run on this machine: {reason}",
            "Choose another with --backend; `apr plugins list` shows what is installed.",
        )


def foreign_kernels(registry: Registry, backend: str) -> dict[tuple[str, str], ForeignKernel]:
    """Kernels that installed distributions bring for this backend, through `apr_kernels`."""
    found: dict[tuple[str, str], ForeignKernel] = {}
    for owned in registry.declarations("kernel"):
        kernel = owned.declaration
        if kernel.backend != backend:
            continue
        key = (kernel.op, kernel.weight)
        if key in found:
            raise BackendError(
                f"{found[key].distribution} and {owned.distribution} both bring a kernel for "
                f"{kernel.op}[{kernel.weight}] on backend {backend!r}",
                "Disable one of them: APR_PLUGINS_BLOCK=<distribution>.",
            )
        found[key] = ForeignKernel(kernel.target, owned.distribution)
    return found


class WeightLoader:
    """Uploads a file's tensors by role."""

    def __init__(
        self, file: AprFile, resolution: Resolution, registry: Registry, binder: Binder
    ) -> None:
        self.file, self.resolution = file, resolution
        self.registry, self.binder = registry, binder
        self._layouts: dict[str, BlockLayout | None] = {}  # by format, once it was checked

    def _quantizer(self, format: str) -> Any:
        return self.registry.make("quantizer", format)

    def _declared(self, format: str) -> Quantizer:
        declaration: Quantizer = self.registry.get("quantizer", format).declaration
        return declaration

    def _decode(self, format: str, raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
        """Rows as float32. A codec is imported when it first decodes; kernels need none."""
        if format in NATIVE:
            return to_float32(raw.reshape(-1), format, (raw.shape[0], cols))
        decoded: NDArray[np.float32] = self._quantizer(format).decode(raw, cols)
        return decoded

    def matrix(self, role: str, layer: int | None, uses: Iterable[str] = ("linear",)) -> Weight:
        """A [rows, cols] tensor for `linear` and `embed`, packed where kernels read it."""
        entry = self.file.tensors[self.resolution.name_of(role, layer)]
        rows, cols = entry.shape
        raw, format = self.file.raw(entry.name), entry.format
        if format in LEGACY:  # no backend reads these in place, and no plugin brings them
            raw, format = decode_tensor(entry, raw, self._quantizer).view(np.uint8), DENSE
        layout = None
        if format not in NATIVE:
            declared = quantizer_for(entry, self._declared)  # its error names what to install
            # kernels trust the block size: a file may not redefine it
            check_declared(entry, declared)
            layout = self._layout(format, declared)
            if "embed" in uses:  # the first step decodes: it should not wait for an import
                self._quantizer(format)
        decode = partial(self._decode, format)
        matrix = HostMatrix(entry.name, format, (rows, cols), raw.reshape(rows, -1), decode, layout)
        return self.binder.weight(matrix, uses)

    def _layout(self, format: str, declared: Quantizer) -> BlockLayout | None:
        """The blocks a generic kernel can read, if the format declares them."""
        if format not in self._layouts:
            layout, block, nbytes = declared.layout, declared.block, declared.bytes_per_block
            if layout:
                check_layout(layout, block, nbytes)
            self._layouts[format] = BlockLayout(layout, block, nbytes) if layout else None
        return self._layouts[format]

    def vector(self, role: str, layer: int | None = None) -> Any:
        """Any other tensor, as a dense float32 array on the backend."""
        entry = self.file.tensors[self.resolution.name_of(role, layer)]
        values = decode_tensor(entry, self.file.raw(entry.name), self._quantizer)
        return self.binder.backend.upload(values)

    def layer(self, mixer: Mixer, index: int) -> Layer:
        """All weights of one layer."""
        weights = SimpleNamespace()
        for role in (*mixer.matrices, *MLP_MATRICES):
            setattr(weights, role, self.matrix(role, index))
        for role in (*mixer.vectors, *NORMS):
            setattr(weights, role, self.vector(role, index))
        for name, array in mixer.constants.items():
            setattr(weights, name, self.binder.backend.upload(array))
        return Layer(mixer, weights)


def plugin_ops(registry: Registry, mixers: Iterable[str]) -> tuple[dict[str, Op], set[str]]:
    """The ops that the named mixers bring along, and the names of all ops they use."""
    brought: dict[str, Op] = {}
    used: set[str] = set()
    for mixer in dict.fromkeys(mixers):
        declaration = registry.get("attention", mixer).declaration
        used |= set(declaration.ops)
        for name, target in declaration.brings:
            brought[name] = registry.load_target(target)
    return brought, used


def make_mixer(registry: Registry, block: Block) -> Mixer:
    """The mixer of a block, made with its options. Raises PluginError or FormatError."""
    factory = registry.load(registry.get("attention", block.mixer))
    try:
        _signature(factory).bind(**block.options)
    except TypeError as error:
        raise FormatError(
            f"attention {block.mixer!r} does not take the options of this family: {error}",
            "The family and the attention plugin do not fit: upgrade both.",
        ) from error
    mixer: Mixer = factory(**block.options)
    return mixer


_signature = cache(inspect.signature)


def make_mixers(registry: Registry, plan: Plan) -> list[Mixer]:
    """One mixer a block."""
    return [make_mixer(registry, block) for block in plan.blocks]


def build_decoder(
    file: AprFile, contract: Contract, config: ModelConfig, plan: Plan, registry: Registry,
    backend: BackendPlugin, backend_name: str,
) -> tuple[Decoder, Binder]:  # fmt: skip
    """Check the file's tensors against the contract, bind the ops, upload the weights.

    Raises ContractError, also where the contract itself does not fit the plan.
    """
    shapes = {name: e.shape for name, e in file.tensors.items()}
    resolution = contract.check(config, shapes)
    tensors = Tensors(resolution, shapes)
    check_outside(tensors, config, NORMS)
    mixers = make_mixers(registry, plan)
    brought, used = plugin_ops(registry, [b.mixer for b in plan.blocks])
    binder = Binder(backend, brought, foreign_kernels(registry, backend_name))
    ops: BoundOps = binder.bind_ops({*used, *DECODER_OPS})
    check_mixers(tensors, config, plan, mixers, partial(make_mixer, registry), brought, used)
    loader = WeightLoader(file, resolution, registry, binder)
    if config.tied_embeddings:
        embedding = head = loader.matrix("embedding", None, ("embed", "linear"))
    else:
        embedding = loader.matrix("embedding", None, ("embed",))
        head = loader.matrix("lm_head", None)
    layers = tuple(loader.layer(mixer, i) for i, mixer in enumerate(mixers))
    decoder = Decoder(
        ops, layers, embedding, head, loader.vector("final_norm"), plan.norm_eps, plan.norm_offset
    )
    return decoder, binder
