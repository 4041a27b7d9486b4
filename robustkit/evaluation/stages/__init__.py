"""The stages of a run, in order: clean pass and certificate, replay, attacks, audit.

Enters: points that are not decided yet.
Leaves: verdicts in the ledger.
Read first: attack.py, then judge.py.
"""
