"""Requests that are computed anew, on real servers: lost instances, and retraction."""
