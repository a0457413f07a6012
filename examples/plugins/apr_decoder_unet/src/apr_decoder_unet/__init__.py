"""A family whose layers are not a chain: its decoder is its own."""
