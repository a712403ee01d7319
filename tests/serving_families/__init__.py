"""One form for each family of attention, on real servers."""
