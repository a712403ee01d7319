"""SGLang's control endpoints in front of a pool, in the process that serves HTTP."""
