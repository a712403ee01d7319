"""Discrete-event simulation of the pool over the production planner and policies."""
