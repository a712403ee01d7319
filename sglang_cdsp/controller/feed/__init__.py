"""What the page at ``/cdsp`` is fed with: recent requests, the pool as it stands, and rates."""
