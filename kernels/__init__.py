"""Kernels, each beside its plain-torch reference. Installed as ``sglang_cdsp.kernels``."""
