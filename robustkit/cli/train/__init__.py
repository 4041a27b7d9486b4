"""`robustkit train`: command.py holds its options, run.py does the work, points.py picks points."""
