"""A family's contract, checked against one checkpoint by names and shapes only."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import yaml

from apr_core.errors import ContractError
from apr_core.family.modelspec import ModelConfig
from apr_core.family.schema import YAML_LOADER
from apr_core.family.schema import check as check_schema

TIED = "the head is tied: it is the embedding, stored once"
LISTED = 20  # names an error lists per kind; the rest is counted
MAX_LENGTH = 500
OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorRule:
    """A tensor a checkpoint should have. `group` is "model", or the contract's carry group."""

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    quant_class: str
    group: str = "model"


@dataclass(frozen=True, slots=True)
class Resolution:
    """A contract's result for the tensors of one checkpoint."""

    layout: str
    rules: Mapping[str, TensorRule]
    skipped: Mapping[str, str] = field(default_factory=dict)  # name -> why
    absent: tuple[str, ...] = ()  # carried tensors that the config promises and the file lacks
    _names: Mapping[tuple[str, int | None], str] = field(default_factory=dict)

    def name_of(self, role: str, layer: int | None = None) -> str:
        """Return the name of the tensor in a role. Raises ContractError if there is none."""
        try:
            return self._names[role, layer]
        except KeyError:
            where = "" if layer is None else f" of layer {layer}"
            raise ContractError(f"the contract has no tensor for role {role!r}{where}") from None


class Contract:
    """A model family's contract. Make one with `of_package`, or with `load` from text."""

    def __init__(self, content: Mapping[str, Any], origin: str) -> None:
        self.content, self.origin = content, origin
        self.family: str = content["family"]
        self.version: int = content["contract_version"]
        self.norm_offset: float = float(content["constraints"]["norm_offset"])
        self.plain_norms: frozenset[str] = frozenset(content.get("plain_norms", ()))
        self.pre_type: str | None = content.get("tokenizer", {}).get("pre_type")
        self.reasoning: tuple[str, ...] = tuple(content.get("chat", {}).get("reasoning", ()))
        self.pattern: str | None = content.get("tokenizer", {}).get("pattern")
        self.variants: Mapping[str, Mapping[str, Any]] = content["size_variants"]

    @classmethod
    def load(cls, text: str, origin: str) -> Contract:
        """Read YAML and check it. Raises ContractError naming every problem."""
        try:
            content = yaml.load(text, YAML_LOADER)
        except yaml.YAMLError as error:
            raise ContractError(f"{origin}: not YAML: {error}") from error
        return cls(check_schema(content, origin), origin)

    @classmethod
    @cache
    def of_package(cls, package: str) -> Contract:
        """Read `contract.yaml` beside a package's modules, once. Raises ContractError."""
        text = files(package).joinpath("contract.yaml").read_text("utf-8")
        return cls.load(text, f"{package}/contract.yaml")

    def layer_type(self, name: str) -> str:
        """Return a layer type in its current spelling. Raises ContractError for an unknown one."""
        known = self.content["layer_types"]
        name = self.content.get("layer_type_aliases", {}).get(name, name)
        if name not in known:
            raise ContractError(f"{self.family}: unknown layer type {name!r}; known: {list(known)}")
        return name

    def variant_of(self, config: ModelConfig) -> str | None:
        """Return the published variant with this hidden size and layer count, or None.

        Of several, the one with the most numbers in common.
        """
        dims = config.dims()
        alike = {name: v.items() & dims.items() for name, v in self.variants.items()}
        fits = {
            n: same for n, same in alike.items() if {"hidden_dim", "num_layers"} <= {*dict(same)}
        }
        return max(fits, key=lambda name: len(fits[name]), default=None)

    def detect_layout(self, names: Collection[str]) -> str:
        """Return the layout whose embedding is among the names. Raises ContractError if none is."""
        template = self.content["tensor_template"]["embedding"]
        expected = {k: template.format(**v) for k, v in self.content["layouts"].items()}
        for layout, name in expected.items():
            if name in names:
                return str(layout)
        raise ContractError(
            f"no embedding was found: {self.family} expects one of {', '.join(expected.values())}",
            "Is this checkpoint of that architecture, and complete?",
        )

    def rules(self, config: ModelConfig, layout: str) -> list[TensorRule]:
        """Return the rules of all tensors for a configuration and layout, except carried ones."""
        template, names = self.content["tensor_template"], self.content["layouts"][layout]
        outside = set(template) - {"per_layer"} - ({"lm_head"} if config.tied_embeddings else set())
        rules = [self._rule(template[r].format(**names), r, None, config) for r in sorted(outside)]
        special = {r for roles in self.content["layer_types"].values() for r in roles}
        for n, kind in enumerate(config.layer_types):
            own = set(self.content["layer_types"][self.layer_type(kind)])
            rules += [
                self._rule(name.format(n=n, **names), role, n, config)
                for role, name in template["per_layer"].items()
                if name is not None and (role in own or role not in special)
            ]
        return rules

    def _rule(self, name: str, role: str, layer: int | None, config: ModelConfig) -> TensorRule:
        shape = evaluate_shape(self.content["shape_template"][role], config.dims())
        tied = config.tied_embeddings and role == "embedding"
        policy = "head" if tied else str(self.content["quantization_policy"][role])
        return TensorRule(name, role, layer, shape, policy)

    def carried(self, config: ModelConfig) -> list[TensorRule]:
        """Return the rules of tensors carried beside the model, if the configuration has them."""
        rules = []
        for group, part in self.content.get("carry", {}).items():
            if not config.extra.get(part.get("when", ""), 0):
                continue
            for name, shape in part["tensors"].items():
                policy = part.get("policy", {}).get(name, "keep")
                dims = evaluate_shape(shape, config.dims())
                rules.append(TensorRule(name, name, None, dims, policy, group))
        return rules

    def reason_to_skip(self, name: str) -> str | None:
        """Return why a tensor of that name is not imported, or None if it is."""
        reasons = self.content.get("leave_out", {})
        return next((str(reasons[each]) for each in reasons if fnmatchcase(name, each)), None)

    def check(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Resolution:
        """Compare the tensors' names and shapes with the rules.

        Raises one ContractError that lists all missing, unexpected and misshapen tensors.
        """
        layout = self.detect_layout(shapes)
        model = self.rules(config, layout)
        carried = self.carried(config)
        absent = tuple(r.name for r in carried if r.name not in shapes)
        rules = {r.name: r for r in [*model, *(r for r in carried if r.name in shapes)]}
        others = [n for n in shapes if n not in rules]
        skipped = {n: why for n in others if (why := self.reason_to_skip(n))}
        if config.tied_embeddings:  # a head that is stored too is a copy of the embedding
            head = self.content["tensor_template"]["lm_head"]
            name = head.format(**self.content["layouts"][layout])
            skipped |= dict.fromkeys({name}.intersection(others), TIED)
        unexpected = [n for n in others if n not in skipped]
        missing = [r.name for r in model if r.name not in shapes]
        misshapen = [
            f"{r.name} has shape {list(shapes[r.name])}, expected {list(r.shape)}"
            for r in rules.values()
            if r.name in shapes and tuple(shapes[r.name]) != r.shape
        ]
        self._refuse(missing, unexpected, misshapen)
        names = {(r.role, r.layer): r.name for r in model}
        return Resolution(layout, rules, skipped, absent, names)

    def _refuse(self, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
        lines = []
        for what, names in (
            ("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen),
        ):  # fmt: skip
            if names:
                shown = "".join(f"\n    {name}" for name in names[:LISTED])
                more = f"\n    and {len(names) - LISTED} more" if len(names) > LISTED else ""
                lines.append(f"\n  {what} ({len(names)}):{shown}{more}")
        if lines:
            raise ContractError(
                f"tensors do not fit the contract {self.family}/{self.version}:{''.join(lines)}",
                "Is the checkpoint complete, and is its config.json the one it came with?",
            )


def evaluate_shape(text: str, dims: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape an expression means. Raises ContractError naming what it cannot read."""
    return tuple(_value(node, text, dims) for node in _parsed(text))


@lru_cache(maxsize=256)  # every layer has the same few
def _parsed(text: str) -> list[ast.expr]:
    if len(text) > MAX_LENGTH:
        raise ContractError(f"shape expression of {len(text)} characters, at most {MAX_LENGTH}")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ContractError(f"shape expression {text!r} is not readable") from None
    if not isinstance(tree, ast.List):
        raise ContractError(f"shape expression {text!r} must be a list in brackets")
    return tree.elts


def _value(node: ast.expr, text: str, dims: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in dims:
            raise ContractError(
                f"shape expression {text!r} needs {node.id!r}, which the configuration lacks"
            )
        return dims[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, text, dims), _value(node.right, text, dims)
        if isinstance(node.op, ast.FloorDiv) and right == 0:
            raise ContractError(f"shape expression {text!r} divides by zero")
        return OPERATORS[type(node.op)](left, right)
    raise ContractError(f"shape expression {text!r} may hold integers, names, + - * // and ( )")
