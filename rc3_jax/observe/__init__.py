"""Metrics of a run, and the work, memory and communication of a step."""
