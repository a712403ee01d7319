"""What instances have cached, as the controller knows it, and what prompts may take of it."""
