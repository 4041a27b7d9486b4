"""Surrogates: models that attacks differentiate in place of one whose gradients mislead.

Enters: a model; what it declares, and what can be found inside it.
Leaves: surrogates by name, for attacks and for the suite `adaptive`.
Read first: resolve.py, then bpda/ and screening.py.
"""
