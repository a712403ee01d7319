"""Requests that go on elsewhere, on real servers: lost instances, and retraction."""
