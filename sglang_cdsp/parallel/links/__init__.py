"""One-sided, polled links between the instances of a pool."""
