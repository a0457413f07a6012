"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Family, hookimpl


@hookimpl
def apr_families() -> list[Family]:
    """Declare the family of Llama and Mistral."""
    return [
        Family(
            "llama",
            "apr_llama.family:Llama",
            summary="Llama 2 and 3, SmolLM2, TinyLlama, Mistral, dense",
            architectures=("LlamaForCausalLM", "MistralForCausalLM"),
            model_types=("llama", "mistral"),
        )
    ]
