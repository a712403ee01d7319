"""KV from many holders to a stock decode server."""
