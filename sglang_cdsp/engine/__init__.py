"""The scheduler's side: chunk tasks on one instance."""
