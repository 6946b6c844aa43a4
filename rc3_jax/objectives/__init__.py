"""Losses: arrays in, scalars out."""
