"""The HTTP server. Everything protocols share is in `chat`; each protocol has a module."""
