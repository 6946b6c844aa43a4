"""Readers of data that lies on disk, one module a format."""
