"""apr: from a Hugging Face checkpoint to a quantized, validated, served model.

Everything in `__all__` is public and imported on first use, so `import apr_core` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_core.lazy import lazily

if TYPE_CHECKING:
    from apr_core.declarations import (
        Attention,
        Backend,
        Command,
        Exporter,
        Family,
        Kernel,
        Layout,
        Numbers,
        Quantizer,
        Recipe,
        Source,
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
    from apr_core.family.modelspec import Block, MixerExample, ModelConfig, Plan, TensorClass
    from apr_core.format import AprFile
    from apr_core.generate.sampling import SamplingParams
    from apr_core.hookspecs import API_VERSION, hookimpl
    from apr_core.model.model import Model, load
    from apr_core.ops import Op, composite, op
    from apr_core.ops.binding import BackendPlugin, Draw, HostMatrix, Weight
    from apr_core.text.tokenizer import Tokenizer
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "apr_core.ops.binding": "BackendPlugin Draw HostMatrix Weight",
            "apr_core.family.contract": "Contract",
            "apr_core.declarations": (
                "Attention Backend Command Exporter Family "
                "Kernel Layout Numbers Quantizer Recipe Source"
            ),
            "apr_core.generate.sampling": "SamplingParams",
            "apr_core.errors": (
                "AprError BackendError BackendUnavailable ConfigError ContractError FormatError "
                "InputOutputError NotFound PluginError QuantizationError UsageError "
                "ValidationFailed"
            ),
            "apr_core.format": "AprFile",
            "apr_core.family.hfconfig": "ConfigReader sampling_defaults",
            "apr_core.hookspecs": "API_VERSION hookimpl",
            "apr_core.model.model": "Model load",
            "apr_core.family.modelspec": "Block MixerExample ModelConfig Plan TensorClass",
            "apr_core.ops": "Op composite op",
            "apr_core.text.tokenizer": "Tokenizer",
        },
    )  # fmt: skip

__version__ = "0.1.0"

__all__ = [
    "API_VERSION", "AprError", "AprFile", "Attention", "Backend", "BackendError",
    "BackendPlugin", "BackendUnavailable", "Block", "Command", "ConfigError", "ConfigReader",
    "Contract", "ContractError", "Draw", "Exporter", "Family", "FormatError", "HostMatrix",
    "InputOutputError", "Kernel", "Layout", "MixerExample", "Model", "ModelConfig", "NotFound",
    "Numbers", "Op", "Plan", "PluginError", "QuantizationError", "Quantizer", "Recipe",
    "SamplingParams", "Source", "TensorClass", "Tokenizer", "UsageError", "ValidationFailed",
    "Weight", "__version__", "composite", "hookimpl", "load", "op", "sampling_defaults",
]  # fmt: skip
