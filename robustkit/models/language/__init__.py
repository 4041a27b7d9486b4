"""Language models as classifiers of prompts, 0: refused, 1: complied.

In come prompts (`robustkit.core.tokens`), out go logits of the verdict on what the model wrote.
Read `prompted.py` first.
"""
