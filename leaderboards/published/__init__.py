"""Boards of results that others published, as data: see README.md."""
