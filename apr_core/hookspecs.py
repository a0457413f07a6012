"""The hooks a plugin may implement. All of them collect: no arguments, no order, no side effects.

A hooks module returns declarations, which are frozen records holding strings. It must not import
arrays, tokenizers or device libraries: `apr plugins list` imports every hooks module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from apr_core import declarations as d

hookspec = HookspecMarker("apr")
hookimpl = HookimplMarker("apr")


@hookspec
def apr_families() -> Iterable[d.Family]:  # type: ignore[empty-body]
    """Model families this distribution can import and run.

    @hookimpl
    def apr_families():
        return [Family("mine", "apr_mine.family:Mine", summary="Mine 1 and 2",
                       architectures=("MineForCausalLM",))]
    """


@hookspec
def apr_attention() -> Iterable[d.Attention]:  # type: ignore[empty-body]
    """Attention variants (mixers), and the ops they bring along.

    @hookimpl
    def apr_attention():
        return [Attention("retention", "apr_retnet.mixer:Retention", summary="decays with distance",
                          state="recurrent", brings=(("retain", "apr_retnet.ops:retain"),))]
    """


@hookspec
def apr_mlps() -> Iterable[d.Mlp]:  # type: ignore[empty-body]
    """Feed-forward variants, and the ops they bring along.

    @hookimpl
    def apr_mlps():
        return [Mlp("reglu", "apr_reglu.mlp:ReGLU", summary="gated by relu",
                    brings=(("reglu", "apr_reglu.ops:reglu"),))]
    """


@hookspec
def apr_quantizers() -> Iterable[d.Quantizer]:  # type: ignore[empty-body]
    """Block number formats.

    @hookimpl
    def apr_quantizers():
        return [Quantizer("mine4", "apr_mine.codec:Mine4", summary="4.25 bits: 64 with a scale",
                          block=64, bytes_per_block=34)]
    """


@hookspec
def apr_recipes() -> Iterable[d.Recipe]:  # type: ignore[empty-body]
    """Recipes: which format each class of tensor gets.

    @hookimpl
    def apr_recipes():
        return [Recipe("mine4", "apr_mine.recipes:mine4", summary="all matrices mine4",
                       formats=("mine4",))]
    """


@hookspec
def apr_backends() -> Iterable[d.Backend]:  # type: ignore[empty-body]
    """Devices: an array namespace, uploads, kernels.

    @hookimpl
    def apr_backends():
        return [Backend("npu", "apr_npu.backend:Npu", summary="the NPU of a phone",
                        requires=("npu_runtime",), probe="apr_npu.probe:probe")]
    """


@hookspec
def apr_kernels() -> Iterable[d.Kernel]:  # type: ignore[empty-body]
    """Faster implementations of an op, for a backend that may be somebody else's.

    @hookimpl
    def apr_kernels():
        return [Kernel("npu/linear/mine4", "apr_mine.kernels:linear", summary="mine4 on the NPU",
                       backend="npu", op="linear", weight="mine4")]
    """


@hookspec
def apr_sources() -> Iterable[d.Source]:  # type: ignore[empty-body]
    """Places checkpoints come from, by URL scheme.

    @hookimpl
    def apr_sources():
        return [Source("s3", "apr_s3.source:fetch", summary="S3 buckets")]
    """


@hookspec
def apr_exporters() -> Iterable[d.Exporter]:  # type: ignore[empty-body]
    """Writers of other file formats.

    @hookimpl
    def apr_exporters():
        return [Exporter("npz", "apr_npz.export:export", summary="NumPy archives")]
    """


@hookspec
def apr_commands() -> Iterable[d.Command]:  # type: ignore[empty-body]
    """Further `apr` commands. The target is a click command.

    @hookimpl
    def apr_commands():
        return [Command("merge", "apr_merge.cli:merge", summary="merge models")]
    """
