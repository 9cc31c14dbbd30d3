"""Runs on many machines, started by the scheduler that people have."""
