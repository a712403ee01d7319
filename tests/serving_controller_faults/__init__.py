"""A pool whose controller is frozen, and one whose launching process is killed."""
