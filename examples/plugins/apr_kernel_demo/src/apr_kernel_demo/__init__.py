"""An example of a kernel for somebody else's backend of apr."""
