"""Tests of what both forms of a pool answer: the test modules of each form import them.

They take a fixture ``client`` and run where they are imported, on the servers of that folder. A
client's ``servers.urls`` has the pool as "router" and as "prefill", and a stock server as "single".
"""
