"""From a checkpoint to an .apr file: reading safetensors, choosing formats, streaming encoding."""
