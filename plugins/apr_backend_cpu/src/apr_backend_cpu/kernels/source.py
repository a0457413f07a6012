"""How kernels are declared, and the list of all of them.

`vector` declares a function by the LLVM IR that a builder writes for a level; `kernel` an exported
function, and `helper` one that kernels call, in the part of Python that Numba compiles. Nothing is
compiled here: `build` does that when a package is built. A call of another kernel by name becomes
a call of its symbol, so that each kernel is compiled once.

Types are letters: `p` an address or another unsigned word, `i` a signed one, `f` a float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import dispatcher
from numba.core.descriptors import TargetDescriptor
from numba.core.registry import cpu_target

from apr_backend_cpu.kernels.vector.builder import Builder

NUMBA_TYPES = {"p": types.uintp, "i": types.int64, "f": types.float32, "": types.void}
IR_TYPES = {"p": ir.IntType(64), "i": ir.IntType(64), "f": ir.FloatType(), "": ir.VoidType()}
TASK = "iii"  # arguments of a task: address of its arguments, its number, address of scratch memory


Emit = Callable[[Builder, tuple[Any, ...]], Any]


@dataclass(frozen=True, slots=True)
class VectorFunction:
    """A function in vector IR. `inline` ones are small and inlined into their callers."""

    name: str
    arguments: str
    result: str
    emit: Emit
    inline: bool


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function that Numba translates, exported under a name."""

    name: str
    arguments: str
    result: str
    function: Any


VECTOR_FUNCTIONS: dict[str, VectorFunction] = {}
KERNELS: dict[str, Kernel] = {}


def vector(
    name: str, arguments: str, emit: Emit, result: str = "", inline: bool = False
) -> types.ExternalFunction:
    """Declare a vector function; return what kernels call it by."""
    VECTOR_FUNCTIONS[name] = VectorFunction(name, arguments, result, emit, inline)
    return external(name, arguments, result)


def external(name: str, arguments: str, result: str = "") -> types.ExternalFunction:
    """Return a reference to a library function, for kernels to call."""
    signature = NUMBA_TYPES[result](*(NUMBA_TYPES[letter] for letter in arguments))
    return types.ExternalFunction(name, signature)


class _Target(TargetDescriptor):
    """Numba's CPU target, ahead of time: functions become LLVM modules and nothing is run."""

    options = cpu_target.options

    @cached_property
    def target_context(self) -> Any:
        context = cpu_target.target_context.with_aot_codegen("apr")
        context.get_executable = lambda library, fndesc, env: object()  # a name, never called
        return context

    @property
    def typing_context(self) -> Any:
        return cpu_target.typing_context


class _Function(dispatcher.Dispatcher):
    """A function being translated."""

    targetdescr = _Target("cpu")

    def add_overload(self, cres: Any) -> None:
        """Remember a translation; there is no code to enter."""
        self.overloads[tuple(cres.signature.args)] = cres


def helper(function: Callable[..., Any]) -> Any:
    """Declare a function that kernels call and that is compiled into them.

    No fastmath: a result must not depend on how a loop was unrolled.
    """
    options = {"nopython": True, "error_model": "numpy", "no_cpython_wrapper": True,
               "no_cfunc_wrapper": True}  # fmt: skip
    return _Function(function, targetoptions=options)


def kernel(arguments: str = TASK, result: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Declare an exported function under its own name; by default a task of a program."""

    def declare(function: Callable[..., Any]) -> Any:
        name: str = function.__name__
        KERNELS[name] = Kernel(name, arguments, result, helper(function))
        return external(name, arguments, result)

    return declare
