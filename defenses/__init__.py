"""The defense pack: one file per defense, installed as `robustkit.defenses`."""

from robustkit.core.packages import install_command
from robustkit.registry import import_folder

if __name__ != "robustkit.defenses":
    raise ImportError(
        f"this folder is the package 'robustkit.defenses', but was imported as {__name__!r}; "
        f"install the checkout ({install_command(checkout=True)}) and ask robustkit.registry for "
        "a defense"
    )

import_folder(__name__, __path__)
