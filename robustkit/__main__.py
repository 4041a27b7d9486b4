"""`python -m robustkit` is `robustkit`."""

from robustkit.cli.program import program as main

main(prog_name="robustkit")
