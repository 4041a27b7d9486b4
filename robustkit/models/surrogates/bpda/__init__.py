"""BPDA: forward as the model, backward through a differentiable approximation of its hard steps.

Enters: a model and its tensor operations, seen by a torch function mode.
Leaves: a model with the same outputs whose gradients pass through rounding, selection and the like.
Read first: mode.py, then rule.py and rules.py.
"""
