"""Tool calls: reading them from model output, and messages for chat templates."""
