"""The vocabulary between families and backends: named operations, each with one reference body."""

from apr_core.ops.op import Op, composite, op
from apr_core.ops.reference import CORE_OPS

__all__ = ["CORE_OPS", "Op", "composite", "op"]
