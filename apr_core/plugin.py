"""What authors of families, formats, devices, sources and exporters import of the core.

Names are imported on first use: a hooks module that takes declarations from here stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_core import lazily

if TYPE_CHECKING:
    from apr_core.declarations import (
        API_VERSION,
        SUPPORTED_APIS,
        Attention,
        Backend,
        Command,
        Declaration,
        Exporter,
        Family,
        Kernel,
        Layout,
        Mlp,
        Numbers,
        Quantizer,
        Recipe,
        Source,
        StateKind,
    )
    from apr_core.errors import (
        AprError,
        BackendError,
        BackendUnavailable,
        ConfigError,
        ContractError,
        FormatError,
        InputOutputError,
        NotFound,
        PluginError,
        QuantizationError,
        UsageError,
        ValidationFailed,
    )
    from apr_core.family.contract import Contract
    from apr_core.family.hfconfig import ConfigReader, sampling_defaults
    from apr_core.family.modelspec import (
        Block,
        FamilyPlugin,
        MixerExample,
        ModelConfig,
        Plan,
        QuantizerPlugin,
        RecipePlugin,
        TensorClass,
    )
    from apr_core.format import AprFile, TensorEntry, decode_tensor
    from apr_core.hookspecs import hookimpl
    from apr_core.messages import working
    from apr_core.model.decoder import Decoder, FeedForward, Layer, Mixer, Weights
    from apr_core.model.state import (
        KVState,
        KVType,
        RecurrentState,
        State,
        StateMakers,
        WindowState,
        Zeros,
    )
    from apr_core.model.step import Segment, Step
    from apr_core.model.trial import Unread, plain, toucher
    from apr_core.ops import CORE_OPS, Op, composite, layouts, op
    from apr_core.ops.binding import (
        BackendPlugin,
        BlockLayout,
        BoundOps,
        Draw,
        HostMatrix,
        StepFunction,
        Weight,
    )
    from apr_core.ops.reference import sigmoid, silu, softplus
    from apr_core.settings import cache_dir, usable_folder
    from apr_core.text.tokenizer_files import unpack
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "apr_core.declarations": (
                "API_VERSION SUPPORTED_APIS Attention Backend Command Declaration Exporter Family "
                "Kernel Layout Mlp Numbers Quantizer Recipe Source StateKind"
            ),
            "apr_core.errors": (
                "AprError BackendError BackendUnavailable ConfigError ContractError FormatError "
                "InputOutputError NotFound PluginError QuantizationError UsageError "
                "ValidationFailed"
            ),
            "apr_core.family.contract": "Contract",
            "apr_core.family.hfconfig": "ConfigReader sampling_defaults",
            "apr_core.family.modelspec": (
                "Block FamilyPlugin MixerExample ModelConfig Plan QuantizerPlugin RecipePlugin "
                "TensorClass"
            ),
            "apr_core.format": "AprFile TensorEntry decode_tensor",
            "apr_core.hookspecs": "hookimpl",
            "apr_core.model.decoder": "Decoder FeedForward Layer Mixer Weights",
            "apr_core.model.state": (
                "KVState KVType RecurrentState State StateMakers WindowState Zeros"
            ),
            "apr_core.model.step": "Segment Step",
            "apr_core.messages": "working",
            "apr_core.ops": "CORE_OPS Op composite layouts op",
            "apr_core.ops.binding": (
                "BackendPlugin BlockLayout BoundOps Draw HostMatrix StepFunction Weight"
            ),
            "apr_core.ops.reference": "sigmoid silu softplus",
            "apr_core.model.trial": "Unread plain toucher",
            "apr_core.settings": "cache_dir usable_folder",
            "apr_core.text.tokenizer_files": "unpack",
        },
    )

__all__ = [
    "API_VERSION", "CORE_OPS", "SUPPORTED_APIS", "AprError", "AprFile", "Attention", "Backend",
    "BackendError", "BackendPlugin", "BackendUnavailable", "Block", "BlockLayout", "BoundOps",
    "Command", "ConfigError", "ConfigReader", "Contract", "ContractError", "Declaration",
    "Decoder", "Draw", "Exporter", "Family", "FamilyPlugin", "FeedForward", "FormatError",
    "HostMatrix", "InputOutputError", "KVState", "KVType", "Kernel", "Layer", "Layout", "Mixer",
    "MixerExample", "Mlp", "ModelConfig", "NotFound", "Numbers", "Op", "Plan", "PluginError",
    "QuantizationError", "Quantizer", "QuantizerPlugin", "Recipe", "RecipePlugin",
    "RecurrentState", "Segment", "Source", "State", "StateKind", "StateMakers", "Step",
    "StepFunction", "TensorClass", "TensorEntry", "Unread", "UsageError", "ValidationFailed",
    "Weight", "Weights", "WindowState", "Zeros", "cache_dir", "composite", "decode_tensor",
    "hookimpl", "layouts", "op", "plain", "sampling_defaults", "sigmoid", "silu", "softplus",
    "toucher", "unpack", "usable_folder", "working",
]  # fmt: skip
