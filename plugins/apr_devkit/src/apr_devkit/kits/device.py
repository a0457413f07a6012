"""What all checks of a backend begin with: the backend, made, or the reason why it cannot be."""

from __future__ import annotations

from apr_core.errors import BackendUnavailable
from apr_core.model.loading import make_backend
from apr_core.ops.binding import BackendPlugin
from apr_devkit.kits.checks import skip
from apr_devkit.kits.plugin import PluginConformance


class DeviceKit(PluginConformance):
    """A kit about one backend."""

    kind = "backend"
    backend: str = ""

    @property
    def device(self) -> BackendPlugin:
        """The backend, made once with default options. Skips where it cannot run."""
        return self.kept("device", self.make_device)

    def make_device(self, threads: int | None = None) -> BackendPlugin:
        """The backend, made anew. Skips where it cannot run."""
        try:
            return make_backend(self.registry, self.name, threads)
        except BackendUnavailable as error:
            skip(error.message)
