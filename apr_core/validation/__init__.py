"""Checks of .apr files: structure, contract, values, tokenizer, quantization error."""

from apr_core.validation.report import Check, Report
from apr_core.validation.validate import check_file, work_bytes
from apr_core.validation.values import TensorReader, TensorStats, tensor_stats

__all__ = [
    "Check", "Report", "TensorReader", "TensorStats", "check_file", "tensor_stats",
    "work_bytes",
]  # fmt: skip
