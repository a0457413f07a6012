"""For authors of plugins: conformance kits, templates, and diagnosis of an installation."""
