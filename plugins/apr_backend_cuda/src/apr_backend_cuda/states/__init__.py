"""States of sequences on the device."""
