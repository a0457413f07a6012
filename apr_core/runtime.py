"""What authors of servers, trainers, evaluators and commands import of the core.

Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_core import lazily

if TYPE_CHECKING:
    from apr_core.cli import COMMANDS, apr
    from apr_core.cli.console import (
        diverted,
        human_bytes,
        print_json,
        print_table,
        progress,
        show_notices,
        sparing_collections,
        upload_progress,
    )
    from apr_core.cli.generation import kv_type_option
    from apr_core.cli.plugins import rows_called
    from apr_core.discovery import PluginRow, allowed, installed, normalized, normalized_id
    from apr_core.errors import PromptTooLong
    from apr_core.generate.boundaries import (
        CHUNK,
        EVERY,
        GRID,
        ChunkBoundaries,
        Prefill,
        boundaries_of,
    )
    from apr_core.generate.generate import Generation, check_prompt, generate, limit_of, stream
    from apr_core.generate.requests import (
        Channel,
        Constraint,
        Delta,
        EndedBy,
        FinishReason,
        GenerationRequest,
        TokenLogprob,
        Usage,
        as_exception,
    )
    from apr_core.generate.sampling import Sampler, SamplingParams
    from apr_core.generate.sequence import (
        GenerationSequence,
        Vocabulary,
        choose_tokens,
        decode_step,
        token_logprob,
    )
    from apr_core.model.model import Model, Snapshot, load
    from apr_core.model.step import Choice, LastLogits
    from apr_core.registry import Owned, Registry, get_registry, tolerant_registry
    from apr_core.settings import Settings, config_content, config_path, problems, read_settings
    from apr_core.text.chat import ChatTemplate, chat_pieces, encode_chat
    from apr_core.text.tokenizer import Tokenizer
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "apr_core.cli": "COMMANDS apr",
            "apr_core.cli.console": (
                "diverted human_bytes print_json print_table progress show_notices "
                "sparing_collections upload_progress"
            ),
            "apr_core.cli.generation": "kv_type_option",
            "apr_core.cli.plugins": "rows_called",
            "apr_core.discovery": "PluginRow allowed installed normalized normalized_id",
            "apr_core.errors": "PromptTooLong",
            "apr_core.generate.boundaries": (
                "CHUNK EVERY GRID ChunkBoundaries Prefill boundaries_of"
            ),
            "apr_core.generate.generate": "Generation check_prompt generate limit_of stream",
            "apr_core.generate.requests": (
                "Channel Constraint Delta EndedBy FinishReason GenerationRequest TokenLogprob "
                "Usage as_exception"
            ),
            "apr_core.generate.sampling": "Sampler SamplingParams",
            "apr_core.generate.sequence": (
                "GenerationSequence Vocabulary choose_tokens decode_step token_logprob"
            ),
            "apr_core.model.model": "Model Snapshot load",
            "apr_core.model.step": "Choice LastLogits",
            "apr_core.registry": "Owned Registry get_registry tolerant_registry",
            "apr_core.settings": "Settings config_content config_path problems read_settings",
            "apr_core.text.chat": "ChatTemplate chat_pieces encode_chat",
            "apr_core.text.tokenizer": "Tokenizer",
        },
    )

__all__ = [
    "CHUNK", "COMMANDS", "EVERY", "GRID", "Channel", "ChatTemplate", "Choice",
    "ChunkBoundaries", "Constraint", "Delta", "EndedBy", "FinishReason", "Generation",
    "GenerationRequest", "GenerationSequence", "LastLogits", "Model", "Owned", "PluginRow",
    "Prefill", "PromptTooLong", "Registry", "Sampler", "SamplingParams", "Settings", "Snapshot",
    "TokenLogprob", "Tokenizer", "Usage", "Vocabulary", "allowed", "apr", "as_exception",
    "boundaries_of", "chat_pieces", "check_prompt", "choose_tokens", "config_content",
    "config_path", "decode_step", "diverted", "encode_chat", "generate", "get_registry",
    "human_bytes", "installed", "kv_type_option", "limit_of", "load", "normalized",
    "normalized_id", "print_json", "print_table", "problems", "progress", "read_settings",
    "rows_called", "show_notices", "sparing_collections", "stream", "token_logprob",
    "tolerant_registry", "upload_progress",
]  # fmt: skip
