"""The page at ``/cdsp``: its files, and how they are served."""
