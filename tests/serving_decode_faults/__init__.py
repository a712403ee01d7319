"""Decode servers that die, freeze and come back, and a pool whose controller is killed."""
