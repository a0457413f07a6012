"""Makes a plan's mixers, feed-forwards and decoder, and checks the contract's claims on them.

A contract's claim that does not hold is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from functools import cache, partial
from typing import Any

from apr_core.errors import ContractError, FormatError, PluginError
from apr_core.family.contract import Contract, Resolution
from apr_core.family.modelspec import ModelConfig, Plan
from apr_core.model.decoder import Decoder, FeedForward, Mixer
from apr_core.model.state import StateMakers
from apr_core.ops import Op
from apr_core.registry import Registry

# the norm of a claim, and how the names of ops that compute it end
NORM_OPS = {"rmsnorm": "rms_norm", "layernorm": "layer_norm"}
HINT = "Tell the plugin's author: the contract, the plan and its parts have to agree."


def plugin_ops(registry: Registry, plan: Plan) -> dict[str, Op]:
    """Return the ops that the mixers and mlps of a plan bring along."""
    names = dict.fromkeys(("attention", block.mixer) for block in plan.blocks)
    names |= dict.fromkeys(("mlp", block.mlp) for block in plan.blocks)
    brings = [pair for kind, name in names for pair in registry.get(kind, name).declaration.brings]
    return {name: registry.load_target(target) for name, target in brings}


def make_part(registry: Registry, kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """Make a block's mixer (kind "attention") or mlp. Raises PluginError or FormatError."""
    factory = registry.load(registry.get(kind, name))
    try:
        _signature(factory).bind(**options)
    except TypeError as error:
        raise FormatError(
            f"{kind} {name!r} does not take the options of this family: {error}",
            f"The family and the {kind} plugin do not fit: upgrade both.",
        ) from error
    part, base = factory(**options), {"attention": Mixer, "mlp": FeedForward}[kind]
    if not isinstance(part, base):
        raise PluginError(
            f"{kind} {name!r} makes a {type(part).__name__}, expected an apr_core.plugin."
            f"{base.__name__}",
            "Its class has to derive from that: tell the plugin's author.",
        )
    return part


_signature = cache(inspect.signature)


class Parts:
    """A plan's mixers and mlps, one of each per block, and the decoder class that runs them.

    Raises PluginError or FormatError where one cannot be made.
    """

    def __init__(self, registry: Registry, plan: Plan) -> None:
        self.plan = plan
        self.decoder: type[Decoder] = (
            registry.load_target(plan.decoder) if plan.decoder else Decoder
        )
        make, blocks = partial(make_part, registry), plan.blocks
        self.mixers: list[Mixer] = [make("attention", b.mixer, b.options) for b in blocks]
        self.mlps: list[FeedForward] = [make("mlp", b.mlp, b.mlp_options) for b in blocks]

    def matrices(self, layer: int | None) -> Mapping[str, tuple[str, ...]]:
        """Return a layer's matrices, and the ops of each; None: those outside the layers."""
        if layer is None:
            return self.decoder.matrices
        pair = self.mixers[layer], self.mlps[layer]
        ops = {role: ("linear",) for part in pair for role in part.matrices}
        return ops | {role: (op,) for part in pair for role, op in part.stacks.items()}

    def norms(self, layer: int | None) -> tuple[str, ...]:
        """Return the roles of the decoder's own dense tensors, in a layer or outside."""
        if layer is None:
            return self.decoder.vectors
        return self.decoder.layer_vectors(self.plan, layer)

    def vectors(self, index: int) -> tuple[str, ...]:
        """Return the roles of a layer's dense tensors."""
        return (*self.mixers[index].vectors, *self.mlps[index].vectors, *self.norms(index))

    def roles(self, layer: int | None) -> set[str]:
        """Return the roles that a layer reads, or, for None, those read outside the layers."""
        own = self.norms(layer) if layer is None else self.vectors(layer)
        return {*self.matrices(layer), *own}

    def constants(self, index: int) -> dict[str, Any]:
        """Return a layer's arrays that no tensor holds, by name."""
        return {**self.mixers[index].constants, **self.mlps[index].constants}

    def kinds(self) -> Iterable[int] | None:
        """Return a layer of each kind; None means all, as a decoder of its own may connect any."""
        if self.decoder is not Decoder:
            return None
        return {repr(block): index for index, block in enumerate(self.plan.blocks)}.values()


def check_roles(resolution: Resolution, parts: Parts, hidden_size: int) -> None:
    """Raise ContractError if the plan does not read a tensor of the contract in this shape."""
    for rule in (rule for rule in resolution.rules.values() if rule.group == "model"):
        if rule.role not in parts.roles(rule.layer):
            raise ContractError(
                f"nothing reads {rule.name}, role {rule.role!r} of the contract",
                "The plan's norms, mixers or feed-forwards are others than the contract means.",
            )
        of_rows = parts.decoder is Decoder and rule.role in parts.norms(rule.layer)
        uses = parts.matrices(rule.layer).get(rule.role)
        if uses and (len(rule.shape) < 2 or ("linear" in uses and len(rule.shape) > 2)):
            expected = "two dimensions"
        elif of_rows and rule.shape != (hidden_size,):
            expected = f"[{hidden_size}]"
        else:
            continue
        raise ContractError(f"{rule.name} has shape {list(rule.shape)}, expected {expected}", HINT)


def check_claims(
    contract: Contract, config: ModelConfig, parts: Parts, ops: Collection[str]
) -> None:
    """Raise ContractError naming every constraint of the contract that the plan does not meet.

    `ops` are the names of the ops a step uses; if empty, claims on them are not checked.
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
    """Return the names a contract may use for these mixers' states and head counts."""
    makers = StateMakers(lambda *shape, **dtype: None)
    kinds = {mixer.new_state(makers).kind for mixer in parts.mixers}
    looks_back, folds = "kv" in kinds, "recurrent" in kinds
    if looks_back and folds:
        return {"hybrid"}
    if folds:
        return {"linear", "ssm"}
    heads, kv_heads = config.num_heads, config.num_kv_heads
    return {"gqa"} | ({"mha"} if heads == kv_heads else {"mqa"} if kv_heads == 1 else set())


def mlp_types(activation: str, gated: bool) -> set[str]:
    """Return the names a contract may use for a feed-forward."""
    if not gated:
        return {f"{activation}_mlp"}
    return {"gated_mlp", "swiglu"} if activation == "silu" else {"gated_mlp"}


def has_bias(parts: Parts) -> bool:
    """Return True if a matrix NAME_proj of some part has a vector NAME_bias."""
    return any(
        f"{role.removesuffix('_proj')}_bias" in part.vectors
        for part in (*parts.mixers, *parts.mlps)
        for role in part.matrices
    )


def positions(ops: Iterable[str]) -> set[str]:
    """Return the positional encodings that ops compute, by a word in the ops' names."""
    words = {word for name in ops for word in name.split("_")}
    return words & {"rope", "alibi", "absolute", "relative"} or {"none"}


def _plain(claim: object) -> object:
    """Return a claim, with truth values that YAML writers spelled as strings made booleans."""
    return {"true": True, "false": False}.get(claim, claim) if isinstance(claim, str) else claim


def _listed(values: Iterable[Any]) -> str:
    return " or ".join(sorted(map(str, values))) or "none of the kind"
