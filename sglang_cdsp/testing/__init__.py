"""Real servers for tests, benchmarks, the demonstration and `profile`."""
