"""Export to the format checkpoints come in. Other formats come with plugins."""
