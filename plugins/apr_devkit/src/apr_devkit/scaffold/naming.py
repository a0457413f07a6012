"""From a chosen name to the names a package needs: distribution, modules, classes."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from apr_core import __version__
from apr_core.plugin import UsageError

LONGEST = 30  # characters: derived names still fit into lines
PEP508 = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
COMMAND = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SCHEME = re.compile(r"[a-z][a-z0-9.-]*")


@dataclass(frozen=True, slots=True)
class KindOfPlugin:
    """How packages of a kind are named, and what they need besides the core."""

    prefix: str  # of the distribution: apr-PREFIX-NAME
    summary: str
    needs: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()  # names that have a meaning in the core
    pattern: re.Pattern[str] = PEP508
    rule: str = "letters, digits, and . _ - between them"


NUMPY = ("numpy>=2.1",)
KINDS: dict[str, KindOfPlugin] = {
    "quantizer": KindOfPlugin("quant", "The number format {name}", NUMPY, ("f32", "f16", "bf16")),
    "family": KindOfPlugin("family", "The model family {name}", NUMPY),
    "attention": KindOfPlugin("attention", "The attention variant {name}", NUMPY),
    "mlp": KindOfPlugin("mlp", "The feed-forward variant {name}", (), ("swiglu",)),
    "backend": KindOfPlugin("backend", "The backend {name}", NUMPY, ("reference",)),
    "kernel": KindOfPlugin("kernel", "A kernel for the backend {backend}", NUMPY),
    "source": KindOfPlugin(
        "source", "The source {name}://", (), ("hf", "file", "http", "https"), SCHEME,
        "lower-case letters, digits, . and -",
    ),
    "exporter": KindOfPlugin("export", "Export to {name}", NUMPY, ("safetensors",)),
    "command": KindOfPlugin(
        "command", "The command apr {name}", ("click>=8.1",), (), COMMAND,
        "lower-case letters and digits, with - between words",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PluginNames:
    """All names in a new package."""

    kind: str
    name: str  # of the declaration, as it was given
    distribution: str
    package: str
    identifier: str  # the name as part of Python names
    class_name: str
    backend: str = ""  # a kernel's

    def values(self) -> dict[str, str]:
        """Return the values of the templates' placeholders."""
        about = KINDS[self.kind]
        major, minor = (int(part) for part in __version__.split(".")[:2])
        core = f"apr-core>={major}.{minor},<{major}.{minor + 1}"
        return {
            "kind": self.kind, "name": self.name, "distribution": self.distribution,
            "package": self.package, "identifier": self.identifier,
            "class_name": self.class_name, "backend": self.backend,
            "entry_point": self.package.removeprefix("apr_"),
            "variable": f"APR_{self.identifier.upper()}_ROOT",
            "summary": about.summary.format(name=self.name, backend=self.backend),
            "dependencies": ", ".join(f'"{each}"' for each in (core, *about.needs)),
            "also_install": f" apr-backend-{self.backend}" if self.backend else "",
        }  # fmt: skip


def names_for(kind: str, name: str, backend: str = "") -> PluginNames:
    """Return the names of a new plugin; `apr-PREFIX-NAME` means NAME. Raises UsageError."""
    about = KINDS[kind]
    for start in (f"apr-{about.prefix}-", f"apr_{about.prefix}_"):
        name = name.removeprefix(start)
    if not PEP508.fullmatch(name) or not about.pattern.fullmatch(name) or len(name) > LONGEST:
        raise UsageError(
            f"{name!r} is no name for the {kind}",
            f"A name has {about.rule}: at most {LONGEST} characters.",
        )
    if name in about.taken:
        raise UsageError(f"{kind} {name!r} is one of the core's own", "Choose another name.")
    identifier = re.sub(r"[-._]+", "_", name).lower()
    if keyword.iskeyword(identifier):
        raise UsageError(f"{name!r} is a keyword of Python", "Choose another name.")
    distribution = f"apr-{about.prefix}-{identifier.replace('_', '-')}"
    words = re.split(r"[-._]+", name)
    class_name = "".join(word[:1].upper() + word[1:] for word in words)
    if not identifier.isidentifier():  # it begins with a digit
        identifier, class_name = f"{about.prefix}_{identifier}", f"{kind.title()}{class_name}"
    return PluginNames(
        kind, name, distribution, distribution.replace("-", "_"), identifier, class_name, backend
    )
