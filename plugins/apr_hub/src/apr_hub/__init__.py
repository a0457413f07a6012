"""Checkpoints from a model hub, in the hub client's own cache."""
