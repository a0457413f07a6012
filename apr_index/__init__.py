"""What is published for apr: data, no code. The core names no plugin; this list does.

`plugins` says, for each kind, which distribution provides a name: for hints only, nothing is ever
installed or imported because of it. `formats` are the block formats whose ids APR v2 itself fixes,
so that files of other writers can be measured without the plugin that decodes them.
"""
