"""Benchmarks: each measures one figure that the documentation states, by one command."""
