"""Declarations of this distribution."""

from apr_core.plugin import Attention, Family, hookimpl


@hookimpl
def apr_families() -> list[Family]:
    """Declare the family of Qwen3, all dense sizes."""
    return [
        Family("qwen3", "apr_family_qwen3.family:Qwen3", summary="Qwen3, dense",
               architectures=("Qwen3ForCausalLM",), model_types=("qwen3",)),
    ]  # fmt: skip


@hookimpl
def apr_attention() -> list[Attention]:
    """Declare its mixer."""
    return [
        Attention("qk_norm_attention", "apr_family_qwen3.mixer:QKNormAttention", state="kv",
                  summary="grouped-query attention with norms of queries and keys"),
    ]  # fmt: skip
