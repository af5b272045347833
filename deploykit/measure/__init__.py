"""Measures bundles on this machine: latency with intervals, and what the machine is."""
