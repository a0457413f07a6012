"""Interpreter, processor and memory. Knows no device: backends describe theirs themselves."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import apr_core
from apr_core.plugin import API_VERSION, SUPPORTED_APIS
from apr_core.runtime import human_bytes
from apr_devkit.doctor.finding import Finding

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
# instruction sets of x86 and ARM that matrix products of floats and bytes use
FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni",
    "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "fphp", "asimdhp", "i8mm", "bf16",
    "sve", "sve2",
)  # fmt: skip


def system() -> Finding:
    """Report Python, platform, core version and its plugin API."""
    facts = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "apr_core": apr_core.__version__,
        "api": API_VERSION,
        "supported_apis": sorted(SUPPORTED_APIS),
    }
    apis = ", ".join(map(str, sorted(SUPPORTED_APIS)))
    rows = [
        ("python", f"{facts['python']} ({sys.executable})"),
        ("platform", str(facts["platform"])),
        ("apr-core", f"{apr_core.__version__}, plugin API {API_VERSION} (accepts {apis})"),
    ]
    return Finding(rows, facts)


def processor() -> Finding:
    """Report the model, the cores this process may use, and the features that kernels use."""
    info = _fields(CPUINFO)
    flags = set(info.get("flags", info.get("Features", "")).split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = info.get("model name") or platform.processor() or platform.machine()
    facts = {
        "model": model,
        "architecture": platform.machine(),
        "logical": os.cpu_count(),
        "usable": usable,
        "features": [name for name in FEATURES if name in flags] if flags else None,
    }
    known = " ".join(facts["features"] or ["none of those looked for"])  # type: ignore[arg-type]
    rows = [
        ("model", f"{model} ({platform.machine()})"),
        ("threads", f"{usable} usable of {os.cpu_count()}"),
        ("features", known if flags else "this system does not tell"),
    ]
    return Finding(rows, facts)


def memory() -> Finding:
    """Report the total memory, and how much of it is available now."""
    info = _fields(MEMINFO)
    if "MemTotal" in info:
        total = 1024 * int(info["MemTotal"].split()[0])
        available = 1024 * int(info.get("MemAvailable", info["MemTotal"]).split()[0])
    else:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        available = page * os.sysconf("SC_AVPHYS_PAGES")
    text = f"{human_bytes(available)} available of {human_bytes(total)}"
    return Finding([("memory", text)], {"total": total, "available": available})


def _fields(path: Path) -> dict[str, str]:
    """Return the file's `key : value` lines, the first of each key; {} where there is no file."""
    fields: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return fields
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields
