"""The operations shared by families and backends, each with one reference body."""

from apr_core.ops.reference import CORE_OPS, Op, composite, matrix_op, op

__all__ = ["CORE_OPS", "Op", "composite", "matrix_op", "op"]
