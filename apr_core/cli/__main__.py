"""`python -m apr_core.cli`."""

from apr_core.cli import main

main()
