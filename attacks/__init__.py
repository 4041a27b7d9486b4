"""The attack pack: one file per attack, installed as `robustkit.attacks`."""

from robustkit.core.packages import install_command
from robustkit.registry import import_folder

if __name__ != "robustkit.attacks":
    raise ImportError(
        f"this folder is the package 'robustkit.attacks', but was imported as {__name__!r}; "
        f"install the checkout ({install_command(checkout=True)}) and ask robustkit.registry for "
        "an attack"
    )

import_folder(__name__, __path__)
