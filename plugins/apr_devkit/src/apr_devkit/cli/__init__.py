"""The commands `apr doctor` and `apr plugins check`, `freeze` and `new`."""
