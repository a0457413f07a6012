"""Whether a model runs as its contract claims. A claim that does not hold is refused by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from apr_core.errors import ContractError
from apr_core.family.contract import Contract
from apr_core.family.modelspec import ModelConfig
from apr_core.model.decoder import Decoder
from apr_core.model.state import StateMakers

if TYPE_CHECKING:
    from apr_core.model.loading import Parts

# the norm of a claim, and how the names of ops that compute it end
NORM_OPS = {"rmsnorm": "rms_norm", "layernorm": "layer_norm"}
HINT = "Tell the plugin's author: the contract, the plan and its parts have to agree."


def check_claims(
    contract: Contract, config: ModelConfig, parts: Parts, ops: Collection[str]
) -> None:
    """Raise ContractError naming every constraint of the contract that the plan does not meet.

    `ops` are the names of those that a step uses; without any, nothing is said about them.
    """
    claims = contract.content["constraints"]
    does: dict[str, set[Any]] = {
        "attention_type": attention_types(config, parts),
        "activation": {mlp.activation for mlp in parts.mlps},
        "mlp_type": set.intersection(*(mlp_types(m.activation, m.gated) for m in parts.mlps)),
        "has_bias": {has_bias(parts)},
        "qk_norm": {any({"q_norm", "k_norm"} <= set(m.vectors) for m in parts.mixers)},
        "norm_offset": {parts.plan.norm_offset},
    }
    if claims["tied_embeddings"] != "per_size":
        does["tied_embeddings"] = {config.tied_embeddings}
    if ops:
        does["norm_type"] = {n for n, op in NORM_OPS.items() if any(o.endswith(op) for o in ops)}
        if parts.decoder is Decoder:
            does["norm_type"] = {"rmsnorm"}
        does["positional_encoding"] = positions(ops)
    wrong = [
        f"it claims {name} {claims[name]}, and runs {_listed(values)}"
        for name, values in does.items()
        if _plain(claims[name]) not in values
    ]
    if wrong:
        raise ContractError(f"contract {contract.family}: {'; '.join(wrong)}", HINT)


def attention_types(config: ModelConfig, parts: Parts) -> set[str]:
    """What the states that mixers keep, and the numbers of heads, can be called."""
    makers = StateMakers(lambda *shape, **dtype: None)
    kinds = {mixer.new_state(makers).kind for mixer in parts.mixers}
    looks_back, folds = kinds & {"kv", "window"}, "recurrent" in kinds
    if looks_back and folds:
        return {"hybrid"}
    if folds:
        return {"linear", "ssm"}
    heads, kv_heads = config.num_heads, config.num_kv_heads
    return {"gqa"} | ({"mha"} if heads == kv_heads else {"mqa"} if kv_heads == 1 else set())


def mlp_types(activation: str, gated: bool) -> set[str]:
    """The names of a feed-forward."""
    if not gated:
        return {f"{activation}_mlp"}
    return {"gated_mlp", "swiglu"} if activation == "silu" else {"gated_mlp"}


def has_bias(parts: Parts) -> bool:
    """Whether a matrix NAME_proj of some part has a vector NAME_bias."""
    return any(
        f"{role.removesuffix('_proj')}_bias" in part.vectors
        for part in (*parts.mixers, *parts.mlps)
        for role in part.matrices
    )


def positions(ops: Iterable[str]) -> set[str]:
    """The positional encodings that ops compute: a word of such an op's name says which."""
    words = {word for name in ops for word in name.split("_")}
    return words & {"rope", "alibi", "absolute", "relative"} or {"none"}


def _plain(claim: object) -> object:
    """YAML writers spell truth values as strings, too."""
    return {"true": True, "false": False}.get(claim, claim) if isinstance(claim, str) else claim


def _listed(values: Iterable[Any]) -> str:
    return " or ".join(sorted(map(str, values))) or "none of the kind"
