"""`robustkit evaluate`: command.py holds its options, plan.py reads them, run.py does the work."""
