"""An example of a kernel for another distribution's backend of apr."""
