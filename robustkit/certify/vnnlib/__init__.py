"""VNN-LIB: the language in which verifiers are asked.

Enters: the text of a property, version 1.0 or 2.0, gzipped or not.
Leaves: the same as alternatives, each a box of inputs and linear constraints; or an answer.
Read first: query.py, then read.py and decide.py.
"""
