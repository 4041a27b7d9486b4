"""`robustkit check`: command.py holds its options, run.py does the work."""
