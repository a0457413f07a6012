"""Generation: sampling and the loop from a prompt to text."""
