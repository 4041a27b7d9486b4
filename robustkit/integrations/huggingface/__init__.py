"""A record on the Hugging Face Hub: model card, data set of adversarial inputs, upload.

Enters: a record, and the ledger beside it.
Leaves: two folders as the hub has them, then two repositories.
Read first: model_card.py, then export.py.
"""
