"""Bad inputs, made by the thousand: what robustkit says to each. Read first: `__main__.py`."""
