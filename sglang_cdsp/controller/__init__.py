"""The pool controller's side: requests, their life cycle, and decode's messages."""
