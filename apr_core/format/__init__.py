"""The APR v2 file format: reading, writing, decoding. Byte layout: docs/reference/format.md."""

from apr_core.format.decode import check_declared, decode_rows, decode_tensor, quantizer_for
from apr_core.format.dtypes import FIRST_FILE_ID, NATIVE, FormatSpec, number_formats, tensor_nbytes
from apr_core.format.floats import from_float32, to_float32
from apr_core.format.reader import AprFile, TensorEntry
from apr_core.format.writer import AprWriter, ShardedWriter, TensorSpec, check_target

__all__ = [
    "FIRST_FILE_ID",
    "NATIVE",
    "AprFile",
    "AprWriter",
    "FormatSpec",
    "ShardedWriter",
    "TensorEntry",
    "TensorSpec",
    "check_declared",
    "check_target",
    "decode_rows",
    "decode_tensor",
    "from_float32",
    "number_formats",
    "quantizer_for",
    "tensor_nbytes",
    "to_float32",
]
