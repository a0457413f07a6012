"""Machine code of the kernels for a level: LLVM modules, optimized and emitted."""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import binding, ir

import apr_backend_cpu.kernels.every  # noqa: F401  lists all kernels
from apr_backend_cpu.kernels.source import IR_TYPES, KERNELS, NUMBA_TYPES, VECTOR_FUNCTIONS, Kernel
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.levels import GENERIC, Level

# Arrays in kernels own no memory, so there are no references to count.
REFERENCE_COUNTS = """
define weak_odr void @NRT_incref(ptr %0) alwaysinline { ret void }
define weak_odr void @NRT_decref(ptr %0) alwaysinline { ret void }
"""


def vector_functions(level: Level) -> str:
    """Return one LLVM module with all vector-IR functions, written for a level."""
    module = ir.Module("vector")
    module.triple = binding.get_process_triple()
    for declared in VECTOR_FUNCTIONS.values():
        arguments = [IR_TYPES[letter] for letter in declared.arguments]
        kind = ir.FunctionType(IR_TYPES[declared.result], arguments)
        function = module.globals.get(declared.name) or ir.Function(module, kind, declared.name)
        if declared.inline:
            function.attributes.add("alwaysinline")
        b = Builder(function.append_basic_block(), level)
        result = declared.emit(b, function.args)
        if declared.result:
            b.ret(result)
        else:
            b.ret_void()
    return str(module)


@cache
def translated() -> tuple[str, ...]:
    """Return an LLVM module for each function that Numba translates.

    They are the same for every level.
    """
    from numba.core import config
    from numba.core.compiler_lock import global_compiler_lock

    before, config.OPT = config.OPT, type(config.OPT)(0)  # optimized later, for each level
    try:
        with global_compiler_lock:
            return tuple(_translate(kernel) for kernel in KERNELS.values())
    finally:
        config.OPT = before


def _translate(kernel: Kernel) -> str:
    arguments = tuple(NUMBA_TYPES[letter] for letter in kernel.arguments)
    kernel.function.compile(arguments)
    overload = kernel.function.overloads[arguments]
    overload.library.finalize()
    return str(overload.library._final_module) + _entry(kernel, overload.fndesc.llvm_func_name)


def _entry(kernel: Kernel, inner: str) -> str:
    """Return a C-ABI function around Numba's, with stack space for its result and error."""
    types = [str(IR_TYPES[letter]) for letter in kernel.arguments]
    parameters = ", ".join(f"{t} %a{i}" for i, t in enumerate(types))
    passed = "".join(f", {t} %a{i}" for i, t in enumerate(types))
    result = str(IR_TYPES[kernel.result])
    result_type = result if kernel.result else "ptr"
    returned = f"%r = load {result}, ptr %result\n ret {result} %r" if kernel.result else "ret void"
    return f"""
define {result} @{kernel.name}({parameters}) {{
 %result = alloca {result_type}
 %error = alloca ptr
 %status = call i32 @{inner}(ptr %result, ptr %error{passed})
 {returned}
}}
"""


def optimized(level: Level, machine: Any, triple: str) -> Any:
    """Return the optimized module of all kernels."""
    module = _parsed(vector_functions(level), triple, machine)
    for text in (REFERENCE_COUNTS, *translated()):
        module.link_in(_parsed(text, triple, machine))
    exported = set(KERNELS) | {f.name for f in VECTOR_FUNCTIONS.values() if not f.inline}
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name not in exported:
            value.linkage = "internal"
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.slp_vectorization = True
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    module.verify()
    return module


def _parsed(text: str, triple: str, machine: Any) -> Any:
    module = binding.parse_assembly(text)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return module


def object_code(level: Level, triple: str = "") -> bytes:
    """Return an object file with all kernels, for an LLVM `triple` or this system."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = triple or binding.get_process_triple()
    target = binding.Target.from_triple(triple)
    cpu, features = level.cpu, level.features
    if level is GENERIC:
        cpu, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    machine = target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="default"
    )
    code: bytes = machine.emit_object(optimized(level, machine, triple))
    return code
