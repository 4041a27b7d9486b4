"""Runs the examples of a page as a reader would, top to bottom in an empty folder.

    python docs/_examples.py docs/tutorials/first.md            # fails where the page is wrong
    python docs/_examples.py docs/tutorials/first.md --update   # writes what came out into the page

- A block with `title="NAME"` is the file NAME.
- `python` runs, all blocks of a page in one namespace; a `text` block right below is its output.
- `console`: lines after `$ ` are commands of robustkit, the others what they print.
- `bash`: commands of robustkit run; others (pip, git) are the reader's business.
- `<!-- skip: reason -->` above a block: it is not run. `<!-- exit: 1 -->`: the expected exit code.
  `<!-- figures: reason -->`: the figures of its output are not compared, the words are.
  `<!-- synthetic: DATA -->`: it runs on a small random copy of that data, and its output is not
  compared, for the page shows that of the real data.

Seconds and the codes that end folders' names may differ; `...` stands for anything.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_FENCE = re.compile(
    r"(?:^<!-- (?P<rule>skip|exit|figures|synthetic): (?P<value>[^>]*?) -->\n)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_VARIES = re.compile(r"\b\d+(\.\d+)? s\b|(?<=-)[0-9a-f]{8}\b")  # seconds, ends of folders' names


class Block(NamedTuple):
    """A fenced block: what it holds, what is asked of it, and where its text lies in the page."""

    language: str
    title: str | None
    rule: str | None
    value: str
    text: str
    start: int
    end: int


def blocks(page: str) -> list[Block]:
    """Find the fenced blocks of a page."""
    return [
        Block(found["language"], found["title"], found["rule"], found["value"] or "",
              found["text"], found.start("text"), found.end("text"))
        for found in _FENCE.finditer(page)
    ]  # fmt: skip


def outcome(page: str) -> tuple[str, list[str]]:
    """Run a page in the working directory; return it with its outputs renewed, and the faults."""
    listed, scope = blocks(page), dict[str, Any]({"__name__": "__main__"})
    renewed, faults, shift = page, list[str](), 0
    for number, block in enumerate(listed):
        if block.rule == "skip":
            continue
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
            continue
        told, place = "", block
        if block.language == "python":
            told, fault = _python(block.text, scope)
            following = listed[number + 1] if number + 1 < len(listed) else None
            close = following and page[block.end + 4 : following.start].strip() == "```text"
            place = following if following is not None and close else block
        elif block.language in ("bash", "console"):
            told, fault = _commands(block)
        else:
            continue
        line = page.count("\n", 0, block.start) + 1
        faults += [f"line {line}: {fault}"] if fault else []
        shown = place is not block or block.language == "console"
        shown = shown and block.rule != "synthetic"
        if shown and not fault and not same(place.text, told, figures=block.rule != "figures"):
            faults.append(f"line {line}: the page shows\n{place.text}but it prints\n{told}")
            start, end = place.start + shift, place.end + shift
            renewed = renewed[:start] + told + renewed[end:]
            shift += len(told) - len(place.text)
    return renewed, faults


def same(shown: str, told: str, *, figures: bool = True) -> bool:
    """Whether an output is what the page shows."""
    texts = [_VARIES.sub("-", text) for text in (shown, told)]
    if not figures:
        texts = [re.sub(r"─+|\d+(\.\d+)?", "#", text) for text in texts]
        texts = [re.sub(r" +", " ", text) for text in texts]
    texts = ["\n".join(map(str.rstrip, text.strip().splitlines())) for text in texts]
    pattern = ".*?".join(map(re.escape, texts[0].split("...")))
    return re.fullmatch(pattern, texts[1], re.DOTALL) is not None


def _python(text: str, scope: dict[str, Any]) -> tuple[str, str]:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(text, "<page>", "exec"), scope)
    except BaseException as error:
        return out.getvalue(), f"{type(error).__name__}: {error}"
    return out.getvalue(), ""


def _commands(block: Block) -> tuple[str, str]:
    """Run the commands of a block; return them with what they print."""
    told, joined = "", block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        told += f"{line}\n"
        if words and words[0] == "robustkit":
            printed, code = _robustkit(words[1:])
            told += printed
            if code != (int(block.value) if block.rule == "exit" else 0):
                return told, f"exit code {code} of: {line}\n{printed}"
        elif words and block.language == "console":
            return told, f"only commands of robustkit can be shown with their output: {line}"
    return told, ""


def _robustkit(words: list[str]) -> tuple[str, int]:
    from click.testing import CliRunner

    from robustkit.cli.program import program as main

    with _forgetting():
        done = CliRunner(env={"COLUMNS": "88"}).invoke(main, [*words], prog_name="robustkit")
    printed = done.stdout + (done.stderr if done.exit_code else "")
    return "".join(f"{line.rstrip()}\n" for line in printed.splitlines()), done.exit_code


@contextlib.contextmanager
def _forgetting() -> Iterator[None]:
    """Forget what a command registers, as a process of its own would."""
    from robustkit import registry

    registry.load_packs()
    kinds = [registry.attacks, registry.defenses, registry.losses, registry.datasets,
             registry.suites]  # fmt: skip
    before = [dict(kind._entries) for kind in kinds]
    yield
    for kind, entries in zip(kinds, before, strict=True):
        kind._entries.clear()
        kind._entries.update(entries)


def _synthetic(room: Path) -> None:
    """Write random images where the pages look for CIFAR-10 and ImageNet."""
    import numpy as np
    from PIL import Image

    rng, arrays = np.random.default_rng(0), dict[str, Any]()
    for split, n in (("train", 128), ("test", 50)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 10
    (room / "data").mkdir()
    np.savez(room / "data" / "cifar10.npz", **arrays)
    os.environ["ROBUSTKIT_DATA"] = str(room / "data")
    for synset in ("n01440764", "n01443537"):
        folder = room / "imagenet" / "val" / synset
        folder.mkdir(parents=True)
        for number, size in enumerate(((500, 375), (300, 400))):
            image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
            image.save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", format="JPEG")


def faults_of(path: Path, *, update: bool = False) -> list[str]:
    """Run one page in an empty folder, and return what is wrong with it."""
    import torch

    torch.set_num_threads(1)
    path = path.resolve()
    page, here = path.read_text(encoding="utf-8"), Path.cwd()
    with tempfile.TemporaryDirectory() as room:
        os.chdir(room)
        if "<!-- synthetic: " in page:
            _synthetic(Path(room))
        renewed, faults = outcome(page)
        os.chdir(here)
    if update:
        path.write_text(renewed, encoding="utf-8")
    return [f"{path.name}: {fault}" for fault in faults]


def main() -> int:
    """Run one page; 0 if it is right, 1 if not."""
    faults = faults_of(Path(sys.argv[1]), update="--update" in sys.argv)
    sys.stderr.write("".join(f"{fault}\n" for fault in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
