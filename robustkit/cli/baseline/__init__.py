"""`robustkit baseline`: command.py holds its options, run.py does the work."""
