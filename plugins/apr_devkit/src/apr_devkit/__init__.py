"""For authors of plugins: conformance kits, templates, and what examines an installation."""
