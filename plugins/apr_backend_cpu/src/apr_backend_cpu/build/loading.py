"""Loading an object file into memory and making it executable with LLVM. Needs no Numba."""

from __future__ import annotations

import hashlib
from typing import Any

from llvmlite import binding


def loaded(code: bytes) -> Any:
    """Return an engine that holds the code: `get_function_address(name)`, 0 if unknown."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        reloc="pic", codemodel="jitdefault", jit=True
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def processor() -> str:
    """Return a name for this processor: LLVM's name and a digest of its features."""
    name, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    return f"{name}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
