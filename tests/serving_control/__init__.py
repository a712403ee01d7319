"""Control endpoints that disturb whoever else uses the servers: weights and memory."""
