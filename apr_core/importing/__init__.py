"""From a checkpoint to an .apr file: reading safetensors, choosing formats, streaming encoding."""

from typing import TYPE_CHECKING

from apr_core import lazily

if TYPE_CHECKING:
    from apr_core.importing.checkpoint import Checkpoint, SourceTensor
    from apr_core.importing.importer import ImportPlan, plan_import, write_import
    from apr_core.importing.metadata import ImportSummary
    from apr_core.importing.source import CheckpointSource, find_source
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "Checkpoint", "CheckpointSource", "ImportPlan", "ImportSummary", "SourceTensor", "find_source",
    "plan_import", "write_import",
]  # fmt: skip
