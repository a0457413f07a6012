"""The platforms that wheels are built for."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from apr_backend_cpu.levels import ARM, LEVELS, X86, Level, architecture


@dataclass(frozen=True, slots=True)
class Platform:
    """A system and an architecture: LLVM's triple, zig's target, and the wheel tag."""

    name: str
    arch: str
    triple: str
    zig: str
    tag: str

    def levels(self) -> list[Level]:
        """Return all levels that this platform's processors may have."""
        return [level for level in LEVELS.values() if level.arch == self.arch]


PLATFORMS = {
    target.name: target
    for target in (
        Platform(
            "linux-x86_64",
            X86,
            "x86_64-unknown-linux-gnu",
            "x86_64-linux-gnu.2.17",
            "manylinux_2_17_x86_64",
        ),
        Platform(
            "linux-aarch64",
            ARM,
            "aarch64-unknown-linux-gnu",
            "aarch64-linux-gnu.2.17",
            "manylinux_2_17_aarch64",
        ),
        Platform(
            "macos-arm64",
            ARM,
            "arm64-apple-macosx11.0.0",
            "aarch64-macos.11.0",
            "macosx_11_0_arm64",
        ),
    )
}


def here() -> Platform | None:
    """Return the platform running this; None if no wheels are built for it."""
    system = {"Linux": "linux", "Darwin": "macos"}.get(platform.system(), "")
    machine = "arm64" if system == "macos" and architecture() == ARM else architecture()
    return PLATFORMS.get(f"{system}-{machine}")
