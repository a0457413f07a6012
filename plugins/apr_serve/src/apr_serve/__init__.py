"""Serves models to many clients at once.

`engine` batches sequences, `grammar` and `tools` constrain and parse what models write, `chat` is
what all protocols share, `openai`, `responses` and `anthropic` are the protocols, `http` is the
server around them, `page` has the web pages.
"""
