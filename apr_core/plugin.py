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
        reading,
    )
    from apr_core.family.contract import Contract, TensorRule
    from apr_core.family.hfconfig import ConfigReader, rope_frequencies, sampling_defaults
    from apr_core.family.modelspec import (
        FEEDBACK,
        NORMS,
        Block,
        FamilyPlugin,
        Inputs,
        MixerExample,
        ModelConfig,
        Plan,
        QuantizerPlugin,
        RecipePlugin,
        TensorClass,
    )
    from apr_core.format import AprFile, FormatSpec, TensorEntry, decode_tensor
    from apr_core.format.dtypes import FIRST_FILE_ID, number_formats
    from apr_core.format.values import from_float32, to_float32
    from apr_core.hookspecs import hookimpl
    from apr_core.importing.checkpoint import Checkpoint, SourceTensor
    from apr_core.importing.choosing import SOURCE
    from apr_core.messages import working
    from apr_core.model.decoder import Decoder, FeedForward, Layer, Mixer, Weights
    from apr_core.model.state import KVState, KVType, RecurrentState, State, StateMakers, Zeros
    from apr_core.model.step import Segment, Step
    from apr_core.model.trial import Unread, plain, toucher
    from apr_core.ops import CORE_OPS, Op, composite, layouts, matrix_op, op
    from apr_core.ops.binding import (
        DENSE,
        GENERIC,
        BackendPlugin,
        BlockLayout,
        BoundOps,
        HostMatrix,
        SamplingMetadata,
        StepFunction,
        Weight,
    )
    from apr_core.ops.reference import sigmoid, silu, softplus
    from apr_core.settings import cache_dir, store_dir, usable_folder
    from apr_core.text.tokenizer_files import unpack
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "API_VERSION", "CORE_OPS", "DENSE", "FEEDBACK", "FIRST_FILE_ID", "GENERIC", "NORMS", "SOURCE",
    "SUPPORTED_APIS", "AprError", "AprFile", "Attention", "Backend", "BackendError",
    "BackendPlugin", "BackendUnavailable", "Block", "BlockLayout", "BoundOps", "Checkpoint",
    "Command", "ConfigError", "ConfigReader", "Contract", "ContractError", "Declaration",
    "Decoder", "Exporter", "Family", "FamilyPlugin", "FeedForward", "FormatError", "FormatSpec",
    "HostMatrix", "InputOutputError", "Inputs", "KVState", "KVType", "Kernel", "Layer", "Layout",
    "Mixer", "MixerExample", "Mlp", "ModelConfig", "NotFound", "Numbers", "Op", "Plan",
    "PluginError", "QuantizationError", "Quantizer", "QuantizerPlugin", "Recipe", "RecipePlugin",
    "RecurrentState", "SamplingMetadata", "Segment", "Source", "SourceTensor", "State",
    "StateKind", "StateMakers", "Step", "StepFunction", "TensorClass", "TensorEntry",
    "TensorRule", "Unread", "UsageError", "ValidationFailed", "Weight", "Weights", "Zeros",
    "cache_dir", "composite", "decode_tensor", "from_float32", "hookimpl", "layouts", "matrix_op",
    "number_formats", "op", "plain", "reading", "rope_frequencies", "sampling_defaults",
    "sigmoid", "silu", "softplus", "store_dir", "to_float32", "toucher", "unpack",
    "usable_folder", "working",
]  # fmt: skip
