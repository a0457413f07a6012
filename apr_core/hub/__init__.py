"""Checkpoints from a model hub, in the hub client's own cache. Imported only when something is
pulled or an `hf://` id is resolved."""

from apr_core.hub.ids import HubId, parse_id
from apr_core.hub.pulling import PulledModel, pull, resolve_local

__all__ = ["HubId", "PulledModel", "parse_id", "pull", "resolve_local"]
