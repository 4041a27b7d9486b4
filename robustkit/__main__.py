"""`python -m robustkit` is `robustkit`."""

from robustkit.cli import main

main()
