"""Complete verification: branch and bound over the signs of ReLUs, until a proof or a break.

Enters: a traced network, points whose margins other bounds left open, a budget.
Leaves: per point proved or undecided, and inputs that the search believes to break a point.
Read first: search.py, then beta_crown.py (the bound), branching.py, root.py and cuts.py.
"""
