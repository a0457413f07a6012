"""The HTTP server around the protocols."""
