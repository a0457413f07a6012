"""A family whose layers are not a chain, with its own decoder."""
