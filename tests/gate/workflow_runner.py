"""A runner for workflows and actions: their steps as bash, with stand-ins for what reaches out.

It reads what the files here use of the syntax: conditions, expressions, `uses` (which it records),
outputs, and the files and variables that GitHub's runner hands to a step.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
_TOKEN = re.compile(r"'[^']*'|\balways\(\)|[a-z]+(?:\.[\w-]+)+|&&|\|\||!=|!")
_WORDS = {"&&": " and ", "||": " or ", "!": " not ", "!=": "!=", "always()": "True"}
# The interpreter of the job: pip is a stand-in that keeps a log, everything else is real.
_PYTHON = f"""#!/bin/bash
if [ "$1 $2" = "-m pip" ]; then
  shift 2
  case "$1" in
    list) printf 'torch==2.6.0+cpu\\nnumpy==2.1.3\\ndistro-info==1.1build1\\n' ;;
    cache) echo "$HOME/pip" ;;
    show) exit "${{HAS_TORCH:-1}}" ;;
    install) printf '%s\\n' "$*" "index=${{PIP_EXTRA_INDEX_URL:-}}" >> "$LOGS/pip"
      exit "${{PIP_CODE:-0}}" ;;
  esac
  exit 0
fi
exec {sys.executable} "$@"
"""
_GH = """#!/bin/bash
printf '%s\\n' "$*" >> "$LOGS/gh"
if [ "$1 $2" = "pr view" ]; then printf '%s' "$COMMENTS"; exit "${GH_CODE:-0}"; fi
for word in "$@"; do case "$word" in body=@*) cp "${word#body=@}" "$LOGS/comment" ;; esac; done
while [ $# -gt 0 ]; do if [ "$1" = --body-file ]; then cp "$2" "$LOGS/comment"; fi; shift; done
exit "${GH_CODE:-0}"
"""


@dataclass
class Runner:
    """A job in `folder/workspace`, with programs of its own in `folder/bin`.

    Attributes:
        variables: what the steps find in their environment besides.
        event: what GITHUB_EVENT_PATH holds.
        used: each step that names an action, with what is handed to it.
        failed: whether a step has ended with another exit code than 0.
    """

    folder: Path
    event_name: str = "push"
    event: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: bool = False
    codes: list[int] = field(default_factory=list)
    errors: str = ""
    told: str = ""

    def __post_init__(self) -> None:
        for name in ("bin", "workspace", "temp", "logs"):
            (self.folder / name).mkdir()
        self.program("python", _PYTHON)
        self.program("gh", _GH)
        (self.folder / "summary").touch()

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def log(self, name: str) -> str:
        path = self.folder / "logs" / name
        return path.read_text() if path.exists() else ""

    @property
    def summary(self) -> str:
        return (self.folder / "summary").read_text()

    def act(self, **inputs: str) -> Runner:
        """Run the action of this repository."""
        action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
        given = {name: str(one.get("default", "")) for name, one in action["inputs"].items()}
        given |= {name.replace("_", "-"): text for name, text in inputs.items()}
        assert given.keys() == action["inputs"].keys()
        return self.run(action["runs"]["steps"], given)

    def run(self, steps: list[dict[str, Any]], inputs: Mapping[str, str] = {}) -> Runner:
        facts = {f"inputs.{name}": text for name, text in inputs.items()}
        facts |= {"github.event_name": self.event_name, "runner.os": "Linux", "runner.arch": "X64"}
        facts |= {"github.token": "t0ken"}
        facts |= _flat("github.event", self.event)
        for step in steps:
            condition = str(step.get("if", "always"))
            if self.failed and "always()" not in condition:
                continue
            if condition != "always" and not _value(condition, facts):
                continue
            found: dict[str, str] = {}
            if "uses" in step:
                given = {k: _filled(str(v), facts) for k, v in step.get("with", {}).items()}
                self.used.append((step["uses"], given))
            else:
                found = self._bash(step, facts)
            if "id" in step:
                self.outputs[step["id"]] = found
                facts |= {f"steps.{step['id']}.outputs.{k}": text for k, text in found.items()}
                outcome = "failure" if self.failed else "success"
                facts[f"steps.{step['id']}.outcome"] = outcome
        return self

    def _bash(self, step: dict[str, Any], facts: Mapping[str, str]) -> dict[str, str]:
        own = {key: _filled(str(value), facts) for key, value in step.get("env", {}).items()}
        place = {name: str(self.folder / name) for name in ("output", "summary", "env", "event")}
        (self.folder / "output").write_text("")
        (self.folder / "event").write_text(json.dumps(self.event))
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.workspace / step.get("working-directory", "."),
            env={
                "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(self.folder / "home"),
                "CI": "true",
                "OMP_NUM_THREADS": "1",
                "LOGS": str(self.folder / "logs"),
                "COMMENTS": "",
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTION_PATH": str(ROOT),
                "GITHUB_WORKSPACE": str(self.workspace),
                "GITHUB_OUTPUT": place["output"],
                "GITHUB_STEP_SUMMARY": place["summary"],
                "GITHUB_ENV": place["env"],
                "GITHUB_EVENT_PATH": place["event"],
                "GITHUB_EVENT_NAME": self.event_name,
                "GITHUB_REPOSITORY": "someone/models",
                "GITHUB_SERVER_URL": "https://github.com",
                "GITHUB_RUN_ID": "17",
                "RUNNER_OS": "Linux",
                "RUNNER_ARCH": "X64",
                "RUNNER_TEMP": str(self.folder / "temp"),
                **self.variables,
                **own,
            },
            capture_output=True,
            text=True,
        )
        self.codes.append(done.returncode)
        self.errors += done.stderr
        self.told += done.stdout
        self.failed = self.failed or done.returncode != 0
        return _read_outputs((self.folder / "output").read_text())


def _flat(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {name: str(value)}
    return {k: v for key, item in value.items() for k, v in _flat(f"{name}.{key}", item).items()}


def _value(expression: str, facts: Mapping[str, str]) -> Any:
    expression = re.sub(r"^\$\{\{(.*)\}\}$", r"\1", expression.strip())

    def translated(found: re.Match[str]) -> str:
        text = found[0]
        if text.startswith("'"):
            return repr(text[1:-1])
        return _WORDS.get(text) or repr(facts.get(text, ""))

    return eval(_TOKEN.sub(translated, expression), {"__builtins__": {}})


def _filled(text: str, facts: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(_value(found[1].strip(), facts)), text)


def _read_outputs(text: str) -> dict[str, str]:
    """Read `name=value` and `name<<END … END`."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        name, _, end = line.partition("<<")
        if end and "=" not in name:
            found[name] = "\n".join(iter(lines.__next__, end))
        else:
            name, _, value = line.partition("=")
            found[name] = value
    return found
