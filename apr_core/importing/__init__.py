"""From a checkpoint to an .apr file: reading safetensors, choosing formats, streaming encoding."""

from apr_core.importing.checkpoint import Checkpoint
from apr_core.importing.importer import ImportPlan, plan_import, write_import
from apr_core.importing.safetensors import SourceTensor
from apr_core.importing.source import FoundSource, find_source
from apr_core.importing.summary import ImportSummary

__all__ = [
    "Checkpoint", "FoundSource", "ImportPlan", "ImportSummary", "SourceTensor", "find_source",
    "plan_import", "write_import",
]  # fmt: skip
