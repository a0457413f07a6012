"""Shape expressions such as "[num_heads * head_dim, hidden_dim]": integers, names, + - * //."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache

from apr_core.errors import ContractError

MAX_LENGTH = 500
OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def evaluate_shape(text: str, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The shape an expression means. Raises ContractError naming what it cannot read."""
    return tuple(_value(node, text, dims) for node in _parsed(text))


@lru_cache(maxsize=256)  # the same few stand for every layer
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
    raise ContractError(
        f"shape expression {text!r} may hold integers, names, + - * // and parentheses"
    )
