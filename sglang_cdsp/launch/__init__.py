"""What the launching process checks before anything starts: values, files and ports."""
