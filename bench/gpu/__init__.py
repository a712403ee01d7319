"""One check of everything that needs a GPU: ``python -m bench.gpu``."""
