"""Devices, processes, and which part of each array lies where."""
