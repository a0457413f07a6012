"""OpenAI's protocols: chat, completions, embeddings; also tokenization."""
