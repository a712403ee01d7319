"""What controller and schedulers say to each other, and where they find each other."""
