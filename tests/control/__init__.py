"""Tests of the control endpoints, without a server."""
