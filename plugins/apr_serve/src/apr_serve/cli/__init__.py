"""The command `apr serve` and its options."""
