"""Weights in and out: other people's names and axis orders against ours, numpy on both sides."""
