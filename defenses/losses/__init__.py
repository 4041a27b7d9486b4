"""Losses to train with, one file each: `loss=` of `undefended`, `pgd_at` and `trades`."""

from robustkit.registry import import_folder

import_folder(__name__, __path__)
