"""Text in and out: the tokenizer inside a file, chat templates, incremental detokenization."""
