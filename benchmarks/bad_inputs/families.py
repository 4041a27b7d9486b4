"""The kinds of bad input. Each family changes one valid thing of the project it stands in.

A family writes what it changes into the working directory, a copy of the project of `world.py`,
and returns how to ask robustkit about it: the words of a command, or a call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeAlias

from benchmarks.bad_inputs import calls, mutate
from benchmarks.bad_inputs.world import EVALUATE

RUN = Path("run") / "model.py-make"


class Case(NamedTuple):
    """One bad input: what was changed, and how robustkit meets it.

    Attributes:
        words: of a command; empty where `call` is made instead.
        call: a call of the Python interface, which may refuse with a `RobustkitError`.
    """

    what: str
    words: tuple[str, ...] = ()
    call: Callable[[], object] | None = None


Family: TypeAlias = Callable[[Random], Case]

_CONFIG = ("--data", "npz:data.npz")
_COMMANDS: tuple[tuple[str, ...], ...] = (
    EVALUATE,
    EVALUATE,
    ("evaluate", "model.py:make", *_CONFIG, "--attack", "fgsm", "--minimum-norm", "--threat", "l2"),
    (
        "evaluate",
        "model.py:make",
        *_CONFIG,
        "--attack",
        "fgsm",
        "--threat",
        "linf",
        "--eps-grid",
        "0.1",
    ),
    ("check", "record.json", "--baseline", "baseline"),
    ("check", "--config", "robustkit.toml", "--quiet"),
    ("plan", "--effect", "0.1", "--n", "10"),
    ("init", "--model", "model.py:make", "--data", "npz:data.npz", "--threat", "linf:0.1"),
    ("baseline", "update", "model.py:make", "--reason", "first", "--n", "2"),
    ("baseline", "list", "baseline"),
    ("history", "run", "--format", "csv"),
    ("list", "attacks"),
    ("leaderboard", "record.json", "--format", "csv"),
    ("report", "record.json", "--out", "page.html", "--pictures", "1"),
    ("train", "undefended", "--data", "npz:data.npz", "--out", "trained", "--batch-size", "9"),
)
# `--workers` would start processes, `--fix` would run pip, `--figures` takes seconds.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "evaluate": (
        *("--data", "--threat", "--eps-grid", "--suite", "--attack", "--certify", "--n", "--seed"),
        *("--device", "--distributed", "--batch-size", "--precision", "--layout", "--replay"),
        *("--max-time", "--max-forwards", "--out", "--weights", "--mean", "--std", "--threads"),
        *("--data-root", "--bogus", "--minimum-norm", "--attack-certified", "--json"),
    ),
    "check": (
        *("--baseline", "--config", "--metric", "--tolerance", "--confidence", "--claim", "--data"),
        *("--undecided", "--max-time", "--max-forwards", "--weights", "--mean", "--std", "--out"),
        *("--device", "--batch-size", "--threads", "--junit", "--sarif", "--markdown", "--bogus"),
    ),
    "plan": ("--effect", "--power", "--confidence", "--tolerance", "--discordance", "--accuracy"),
    "init": ("--model", "--data", "--threat", "--suite", "--pyproject"),
    "baseline": ("--reason", "--baseline", "--config", "--data", "--threat", "--suite", "--n",
                 "--seed", "--weights", "--mean", "--std", "--device", "--threads"),
    "history": ("--format", "--output", "--plot"),
    "list": ("--json", "--bogus"),
    "leaderboard": ("--format", "--output", "--published"),
    "report": ("--out", "--title", "--pictures", "--data", "--data-root", "--format"),
    "train": ("--data", "--out", "--epochs", "--batch-size", "--seed", "--device", "--threads"),
}  # fmt: skip


_SMALL = (
    *("fgsm", "pgd(steps=2)", "apgd(steps=3)", "apgd(loss=dlr, steps=3)", "square(queries=5)"),
    *("fab(steps=2)", "ddn(steps=3)", "fmn(steps=3)", "sigma_zero(steps=3)", "apgd_l1(steps=3)"),
    *("rays(queries=20)", "hopskipjump(queries=30)", "spsa(steps=2)", "relay(steps=3)"),
)


def arguments(rng: Random) -> Case:
    """A command with one word changed, left out or given twice, or with an option more."""
    words = list(rng.choice(_COMMANDS))
    at = rng.randrange(1, len(words))
    match rng.randrange(8):
        case 0:
            del words[at]
        case 1:
            words.insert(at, words[at])
        case 2:
            words.insert(at, rng.choice(mutate.WORDS))
        case 3 | 4:
            words[at] = mutate.word(rng, words[at])
        case _:
            words += [rng.choice(_OPTIONS[words[0]]), rng.choice(mutate.WORDS)]
    return Case("arguments", tuple(words))


def configuration(rng: Random) -> Case:
    """robustkit.toml, read by check and by baseline."""
    path = Path("robustkit.toml")
    changed = mutate.configuration(rng, path.read_bytes())
    if rng.randrange(4) == 0:
        path.unlink()
        path = Path("pyproject.toml")
        changed = changed.replace(b"[[models]]", b"[[tool.robustkit.models]]")
        changed = b"[tool.robustkit]\n" + changed.replace(b"[check]", b"[tool.robustkit.check]")
    path.write_bytes(changed)
    words = (("check",), ("check", "record.json"), ("baseline", "update", "--reason", "why"),
             ("baseline", "list"))  # fmt: skip
    return Case(f"{path}: {_shown(changed)}", rng.choice(words))


def record(rng: Random) -> Case:
    """A record, read by every command that takes one."""
    path = Path("record.json")
    changed = mutate.document(rng, path.read_bytes())
    path.write_bytes(changed)
    where = Path("baseline/model/record.json")
    other = rng.choice((("check", "run", "--baseline", "baseline"),
                        ("baseline", "list", "baseline"),
                        ("check", "model.py:make", "--baseline", "baseline")))  # fmt: skip
    form = rng.choice(("table", "csv", "markdown", "latex", "json"))
    words: tuple[str, ...] = rng.choice((
        ("leaderboard", "record.json", "--format", form), ("leaderboard", "record.json"),
        ("history", "record.json", "run/model.py-make"),
        ("check", "record.json", "--baseline", "run"),
        ("plan", "--effect", "0.1", "--n", "50", "--like", "record.json", str(RUN / "record.json")),
        other,
    ))  # fmt: skip
    if rng.randrange(20) == 0:  # it takes a second
        words = ("report", "record.json", "--out", "page.html")
    if words is other:
        where.write_bytes(changed)
    return Case("record.json", words)


def run_configuration(rng: Random) -> Case:
    """config.json in the folder of a run that goes on."""
    path = Path("run") / "config.json"
    path.write_bytes(mutate.document(rng, path.read_bytes()))
    return Case(str(path), (*EVALUATE, *_sometimes(rng, "--fresh")))


def ledger(rng: Random) -> Case:
    """A ledger, by its bytes or by its cells, read by what resumes, replays, checks and reports."""
    curve = Path("curve/model.py-make/linf-0.1")
    path = rng.choice((RUN, RUN, Path("baseline") / "model", curve)) / "ledger.sqlite"
    if rng.randrange(3) == 0:
        path.write_bytes(mutate.content(rng, path.read_bytes()))
    elif rng.randrange(8) == 0:
        path.with_name("ledger.sqlite-wal").write_bytes(rng.randbytes(100))
    else:
        mutate.cells(rng, path)
    path.with_name("record.json").unlink() if rng.randrange(2) else None
    if path.is_relative_to("curve"):
        words: tuple[str, ...] = (
            *EVALUATE[:-1],
            "curve",
            "--threat",
            "linf",
            "--eps-grid",
            "0.1,0.05",
        )
    elif path.is_relative_to("baseline"):
        words = ("check", "model.py:make", "--baseline", "record.json")
        if path.with_name("record.json").exists():
            words = (*words[:-1], str(path.with_name("record.json")))
    else:
        replay = (*EVALUATE[:-1], "other", "--replay", str(RUN))
        words = rng.choice((EVALUATE, (*EVALUATE, "--fresh"), replay))
        if rng.randrange(10) == 0:
            words = ("report", str(RUN), "--out", "page.html")
    return Case(str(path), words)


def data(rng: Random) -> Case:
    """Data files: npz stored and packed, an npy of another kind, an image folder."""
    name = rng.choice(("data.npz", "packed.npz", "arrays.npz", "x.npy", "images"))
    if name == "arrays.npz":
        calls.save_arrays(rng, Path(name))
    else:
        path = Path(name) if name != "images" else rng.choice(sorted(Path("images/0").iterdir()))
        if rng.randrange(6) == 0:
            other = rng.choice(("weights.pt", "record.json", "x.npy", "model.py", "packed.npz"))
            path.write_bytes(Path(other).read_bytes())
        else:
            path.write_bytes(mutate.content(rng, path.read_bytes()))
    source = "folder:images" if name == "images" else f"npz:{name}"
    words = (*EVALUATE[:3], source, *EVALUATE[4:-1], "other")
    return Case(name, words)


def weights(rng: Random) -> Case:
    """Weight files and their cards."""
    name = rng.choice(("weights.safetensors", "weights.pt", "card.json"))
    path = Path(name)
    if name == "card.json":
        return _card(rng)
    if rng.randrange(3) == 0:
        calls.save_weights(rng, path)
    elif rng.randrange(6) == 0:
        other = rng.choice(
            ("weights.pt", "weights.safetensors", "record.json", "x.npy", "data.npz")
        )
        path.write_bytes(Path(other).read_bytes())
    else:
        path.write_bytes(mutate.content(rng, path.read_bytes()))
    return Case(name, (*EVALUATE[:-1], "other", "--weights", name))


def _card(rng: Random) -> Case:
    from robustkit.models.checkpoints import Card, digest

    card = Card("undefended", {}, "npz:data.npz", (1, 5, 5), 2, "robustkit train", 0, 1, {},
                digest(Path("weights.safetensors")), "0.1.0")  # fmt: skip
    Path("card.json").write_bytes(mutate.document(rng, json.dumps(card.plain()).encode()))
    words = ("evaluate", "undefended", *EVALUATE[2:-1], "other", "--weights", "weights.safetensors")
    return Case("card.json", words)


def training_state(rng: Random) -> Case:
    """state.pt in a folder of a training that goes on."""
    folder = Path("trained")
    folder.mkdir()
    name = rng.choice(("state.pt", "model.safetensors", "card.json"))
    valid = Path(rng.choice(("weights.pt", "weights.safetensors", "record.json")))
    (folder / name).write_bytes(mutate.content(rng, valid.read_bytes()))
    words = ("train", "undefended", *_CONFIG, "--out", "trained", "--epochs", "1",
             "--batch-size", "4", "--device", "cpu")  # fmt: skip
    return Case(f"{folder / name}", words)


def extremes(rng: Random) -> Case:
    """What is valid, at its very end: eps, seed, batch, points, budget, for every attack."""
    spec = rng.choice(_SMALL)
    radii = ("linf:1", "linf:1e-30", "linf:1.2e-38", "l2:5", "l2:1e-20", "l1:25", "l1:1e-10",
             "l0:1", "l0:25", "linf:0.1", "l2:0.5")  # fmt: skip
    words = ["evaluate", "model.py:make", *_CONFIG, "--threat", rng.choice(radii), "--attack", spec,
             "--out", "other", "--device", "cpu"]  # fmt: skip
    more = (("--seed", str(2**63 - 1)), ("--seed", str(2**32)), ("--batch-size", "1"),
            ("--batch-size", str(2**40)), ("--n", "1"), ("--max-forwards", "1"),
            ("--max-forwards", "9" * 30), ("--max-time", "1s"), ("--max-time", "9" * 400 + "d"),
            ("--minimum-norm",), ("--certify", "auto"), ("--certify", "smoothing"),
            ("--mean", "1e30"), ("--std", "1e-38"), ("--std", "1e38"), ("--mean", "nan"),
            ("--no-save-adversarial",), ("--weights", "weights.pt"))  # fmt: skip
    for option in rng.sample(more, rng.randrange(1, 4)):
        words += option
    return Case("extremes", tuple(words))


def published(rng: Random) -> Case:
    """A published result."""
    path = Path("published/cifar10/Linf/Paper.json")
    path.write_bytes(mutate.document(rng, path.read_bytes()))
    form = rng.choice(("table", "csv", "markdown", "latex", "json"))
    return Case(str(path), ("leaderboard", "--published", "published", "--format", form))


def python(rng: Random) -> Case:
    """A call from Python with one argument changed."""
    what, call = calls.draw(rng)
    return Case(what, call=call)


def _sometimes(rng: Random, *words: str) -> Sequence[str]:
    return words if rng.randrange(2) else ()


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")[:60]


FAMILIES: tuple[Family, ...] = (
    *(arguments, arguments, arguments, python, python, python, configuration, configuration),
    *(record, record, ledger, ledger, data, data, weights, run_configuration, published),
    *(training_state, extremes),
)
