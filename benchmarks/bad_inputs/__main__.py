"""What robustkit says to bad inputs, made by the thousand.

    python -m benchmarks.bad_inputs                       # 1,000 inputs
    python -m benchmarks.bad_inputs --n 10000 --seed 7
    python -m benchmarks.bad_inputs --seed 7 --case 4711  # one of them again, with what was said

Each is something valid with one change: the arguments of a command or of a call, a configuration,
a record, a ledger, data, weights. It runs in this process, in a copy of a small project. The answer
must be an exit code from 0 to 3 with a message that names the cause, within 5 seconds of computing
and without a temporary file left behind; a call may refuse with a `RobustkitError`.

Exits with 1 when an answer is none of these; the command that repeats it is printed.
"""

from __future__ import annotations

import sys
from collections import Counter

import click

from benchmarks.bad_inputs.run import Finding, project, try_case


@click.command(help=__doc__)
@click.option("--n", default=1000, show_default=True, type=click.IntRange(1), help="Inputs.")
@click.option("--seed", default=0, show_default=True, help="Of all that is drawn.")
@click.option("--case", type=click.IntRange(0), help="This one alone, with what was said.")
@click.option("--most", default=20, show_default=True, help="Stop after so many failures.")
def main(n: int, seed: int, case: int | None, most: int) -> None:
    codes: Counter[str] = Counter()
    failed: list[Finding] = []
    with project() as folder:
        for index in range(n) if case is None else (case,):
            found = try_case(folder, seed, index)
            codes[found.outcome] += 1
            if case is not None:
                click.echo(f"{found.told()}\n{found.said}")
            elif found.trouble:
                click.echo(f"{found.told()}\n{found.said}\n")
            failed += [found] if found.trouble else []
            if len(failed) >= most:
                break
    click.echo(f"{sum(codes.values())} bad inputs: " + ", ".join(
        f"{count} {outcome}" for outcome, count in sorted(codes.items())
    ) + f"; {len(failed)} failed")  # fmt: skip
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
