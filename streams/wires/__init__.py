"""Wires: what a run's events become for one kind of client."""
