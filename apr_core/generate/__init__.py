"""Generation: chunked prefill, sampling, one sequence from a prompt to text."""
