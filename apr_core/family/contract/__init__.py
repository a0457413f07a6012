"""Contracts: what tensors a family has, what shape, in which role. The contract decides."""

from apr_core.family.contract.contract import Contract, Resolution, TensorRule

__all__ = ["Contract", "Resolution", "TensorRule"]
