"""The pool's metrics on SGLang's `/metrics`: what there is, and what fills it."""
