"""The checker of stored proofs: at most 300 lines that share no code with what found the proofs.

Enters: a folder of proofs: a network as plain data, points, a threat model, multipliers.
Leaves: of every point whether its proof holds, by bounds recomputed in float64.
Read first: folder.py, then checker.py (the rules), domain.py (the bounds) and network.py.
"""
