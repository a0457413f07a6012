"""The APR v2 file format: reading and decoding here, writing in `apr_core.format.writer`.

Byte layout: docs/reference/format.md.
"""

from apr_core.format.dtypes import NATIVE, FormatSpec, tensor_nbytes
from apr_core.format.reader import AprFile, TensorEntry
from apr_core.format.values import (
    check_declared,
    check_stack,
    decode_rows,
    decode_tensor,
    from_float32,
    quantizer_for,
    to_float32,
)

__all__ = [
    "NATIVE", "AprFile", "FormatSpec", "TensorEntry", "check_declared", "check_stack",
    "decode_rows", "decode_tensor", "from_float32", "quantizer_for", "tensor_nbytes", "to_float32",
]  # fmt: skip
