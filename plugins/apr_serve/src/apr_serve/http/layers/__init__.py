"""Middleware: request logs, proxies, API keys and request bodies."""
