"""The defense pack: one file per defense, installed as `robustkit.defenses`."""

from robustkit.registry import import_folder

if __name__ != "robustkit.defenses":
    raise ImportError(
        f"this folder is the package 'robustkit.defenses', but was imported as {__name__!r}; "
        "install the checkout (pip install -e .) and ask robustkit.registry for a defense"
    )

import_folder(__name__, __path__)
