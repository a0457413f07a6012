"""Which plugins are installed, what each one provides, and why one cannot be used."""
