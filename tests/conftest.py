"""Folders of tests for a package that is not installed are left out, as with the core alone."""

from __future__ import annotations

from importlib.util import find_spec

PACKAGES = {
    "devkit": "apr_devkit", "engine": "apr_serve", "eval": "apr_eval", "hub": "apr_hub",
    "kits": "apr_devkit", "page": "apr_serve", "serve": "apr_serve",
}  # fmt: skip
collect_ignore = [folder for folder, package in PACKAGES.items() if find_spec(package) is None]
