"""The commands of `python -m sglang_cdsp`, one module each: `add_arguments` and `run`."""
