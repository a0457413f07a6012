"""What authors of servers, trainers, evaluators and commands import of the core.

Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_core import lazily

if TYPE_CHECKING:
    from apr_core.cli import COMMANDS, apr, model_file
    from apr_core.cli.console import (
        diverted,
        download_progress,
        human_bytes,
        output_option,
        print_json,
        print_table,
        printable,
        progress,
        show_notices,
        sparing_collections,
        upload_progress,
    )
    from apr_core.cli.generation import kv_type_option
    from apr_core.cli.plugins import rows_called
    from apr_core.discovery import PluginRow, allowed, installed, normalized, normalized_id
    from apr_core.discovery.collecting import collect
    from apr_core.errors import PluginConflict, PluginNotFound, PromptTooLong
    from apr_core.generate.boundaries import (
        CHUNK,
        EVERY,
        GRID,
        ChunkBoundaries,
        Prefill,
        boundaries_of,
    )
    from apr_core.generate.deltas import (
        Channel,
        Delta,
        EndedBy,
        FinishReason,
        TokenLogprob,
        Usage,
        as_exception,
    )
    from apr_core.generate.generate import Generation, check_prompt, generate, limit_of, stream
    from apr_core.generate.sampling import Sampler, SamplingParams, finite, largest, sample
    from apr_core.generate.sequence import GenerationSequence, decode_step, sample_tokens
    from apr_core.generate.writer import Writer
    from apr_core.importing.checkpoint import read_header
    from apr_core.importing.importer import ImportPlan, plan_import, write_import
    from apr_core.importing.metadata import build_metadata
    from apr_core.importing.source import find_source
    from apr_core.model.loading import (
        WeightLoader,
        checked_loader,
        family_config,
        foreign_kernels,
        make_backend,
    )
    from apr_core.model.model import Model, Snapshot, load
    from apr_core.model.parts import plugin_ops
    from apr_core.model.state import state_makers
    from apr_core.model.step import Choice, LastLogits, make_step
    from apr_core.model.trial import ReferenceBackend, Trial, TrialOps
    from apr_core.ops.binding import Binder, ForeignKernel, resolve
    from apr_core.registry import Owned, Registry, get_registry, tolerant_registry
    from apr_core.settings import Settings, config_content, config_path, problems, read_settings
    from apr_core.text.chat import ChatTemplate, chat_pieces, encode_chat
    from apr_core.text.detokenize import MAX_PENDING
    from apr_core.text.tokenizer import Tokenizer
    from apr_core.validation.values import TensorReader
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "CHUNK", "COMMANDS", "EVERY", "GRID", "MAX_PENDING", "Binder", "Channel", "ChatTemplate",
    "Choice", "ChunkBoundaries", "Delta", "EndedBy", "FinishReason", "ForeignKernel",
    "Generation", "GenerationSequence", "ImportPlan", "LastLogits", "Model", "Owned",
    "PluginConflict", "PluginNotFound", "PluginRow", "Prefill", "PromptTooLong",
    "ReferenceBackend", "Registry", "Sampler", "SamplingParams", "Settings", "Snapshot",
    "TensorReader", "TokenLogprob", "Tokenizer", "Trial", "TrialOps", "Usage", "WeightLoader",
    "Writer", "allowed", "apr", "as_exception", "boundaries_of", "build_metadata", "chat_pieces",
    "check_prompt", "checked_loader", "collect", "config_content", "config_path", "decode_step",
    "diverted", "download_progress", "encode_chat", "family_config", "find_source", "finite",
    "foreign_kernels", "generate", "get_registry", "human_bytes", "installed", "kv_type_option",
    "largest", "limit_of", "load", "make_backend", "make_step", "model_file", "normalized",
    "normalized_id", "output_option", "plan_import", "plugin_ops", "print_json", "print_table",
    "printable", "problems", "progress", "read_header", "read_settings", "resolve", "rows_called",
    "sample", "sample_tokens", "show_notices", "sparing_collections", "state_makers", "stream",
    "tolerant_registry", "upload_progress", "write_import",
]  # fmt: skip
