"""What a card is for, in ten minutes: tests, suites, engine, graphs, precisions, a killed worker.

Each section is a process of its own with a time limit, whose rows are written one by one. Read
first: __main__.py; what is measured is in sections.py.
"""
