"""The demonstration: a small checkpoint, a stack of real servers, and a client."""
