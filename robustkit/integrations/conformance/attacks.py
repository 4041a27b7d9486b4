"""What every attack must do, whatever it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.integrations.conformance.fixtures import THREATS, Rows, need, points
from robustkit.registry import Entry, attacks
from robustkit.search.functional import attack
from robustkit.search.protocol import Search, needs_no_norm
from robustkit.search.tasks import fresh_tasks

_SMALL = {"steps": 8, "queries": 30, "targets": 2, "pairs": 4, "neighbors": 2}
_SMALL |= {"blocks": 1}  # of pictures of 6 x 6, shuffled blocks show nothing


def checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one attack, by name."""
    yield "says whether it needs gradients", partial(_facts, entry)
    yield "supports a norm or says that it does not", partial(_norms, entry)
    supported = [threat for threat in THREATS if _supports(entry, threat)]
    for threat in supported:
        for what, check in (
            ("stays inside the threat model", _inside),
            ("breaks most points at a larger radius", _works),
            ("follows its seed", _seeded),
            ("does not touch the model", _untouched),
            ("does not depend on slots and order", _independent),
            ("is defined for two and three classes", _few_classes),
        ):
            yield f"{what} ({threat.norm})", partial(check, entry, threat)


def small(entry: Entry) -> Search[Any]:
    """Build the attack with a budget that takes milliseconds."""
    options = {key: value for key, value in _SMALL.items() if key in entry.options}
    if entry.options.get("eot", 1) > 2:
        options["eot"] = 2
    built: Search[Any] = attacks.build(Spec(entry.name, tuple(sorted(options.items()))))
    return built


def _supports(entry: Entry, threat: Threat) -> bool:
    try:
        return bool(small(entry).jobs(threat, 4))
    except Exception:
        return False


def _facts(entry: Entry) -> None:
    need(
        isinstance(entry.facts.get("white_box"), bool),
        f"expected white_box=True or False in its registration, got {entry.facts.get('white_box')}",
    )
    search = small(entry)
    for name in ("uses_gradient", "stays_inside"):
        value = getattr(search, name, None)
        need(isinstance(value, bool), f"expected {name} as True or False, got {value!r}")


def _norms(entry: Entry) -> None:
    supported = int(needs_no_norm(entry.target))
    for threat in THREATS:
        try:
            supported += bool(small(entry).jobs(threat, 4))
        except UsageError:
            continue
    norms = ", ".join(threat.norm for threat in THREATS)
    need(supported > 0, f"expected at least one of {norms} to be supported, got none")


def _inside(entry: Entry, threat: Threat) -> None:
    model, search = Rows().eval(), small(entry)
    x, y = points(model, 8)
    clean = x.clone()
    z = attack(model, x, y, search, threat, seed=1, slots=5)
    need(torch.equal(x, clean), "the attack wrote into the inputs that it was given")
    need(bool(z.isfinite().all()), "the attack returned numbers that are not finite")
    outside = int((~threat.contains(z, x)).sum())
    need(outside == 0, f"{outside} of 8 results lie outside {threat}")
    with torch.no_grad():
        right, robust = model(x).argmax(1) == y, model(z).argmax(1) == y
    changed = (z != x).flatten(1).any(1)
    need(
        torch.equal(changed, right & ~robust),
        "expected a changed input exactly where the model was right and now errs",
    )


def _works(entry: Entry, threat: Threat) -> None:
    model, wide = Rows().eval(), Threat(threat.norm, 5 * threat.eps)
    x, y = points(model)
    z = attack(model, x, y, small(entry), wide)
    with torch.no_grad():
        before, after = (int((model(images).argmax(1) == y).sum()) for images in (x, z))
    need(after <= before / 3, f"{after} of {before} points are still robust at {wide}")


def _seeded(entry: Entry, threat: Threat) -> None:
    model, search = Rows().eval(), small(entry)
    x, y = points(model, 8)
    job = search.jobs(threat, 4)[0]
    with torch.no_grad():
        ranked = model(x).argsort(1, descending=True)

    def first(seed: int) -> torch.Tensor:
        index = torch.arange(len(x))
        tasks = fresh_tasks(x, y, ranked, index, [job] * len(x), entry.name, seed)
        query: torch.Tensor = search.start(tasks, threat).query
        return query

    need(torch.equal(first(0), first(0)), "the same seed gave two different starts")
    random = not torch.equal(first(0), x)
    moved = not torch.equal(first(0), first(1))
    need(random == moved, "a start that is not the clean point must change with the seed")
    runs = [attack(model, x, y, search, threat, seed=7) for _ in range(2)]
    need(torch.equal(*runs), "the same seed gave two different results")


def _untouched(entry: Entry, threat: Threat) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(64, 4),
        ).eval()  # fmt: skip
        x = torch.rand(6, 1, 6, 6)
    state = copy.deepcopy(model.state_dict())
    modes = [layer.training for layer in model.modules()]
    with torch.no_grad():
        y = model(x).argmax(1)
    attack(model, x, y, small(entry), threat, slots=4)
    same = all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    need(same, "the attack changed the model's weights or buffers")
    need([m.training for m in model.modules()] == modes, "the attack changed the model's mode")
    need(all(p.grad is None for p in model.parameters()), "gradients were left in the weights")


def _independent(entry: Entry, threat: Threat) -> None:
    model, search = Rows().eval(), small(entry)
    x, y = points(model)
    one_job = len(search.jobs(threat, 4)) == 1
    whole = attack(model, x, y, search, threat, slots=64)
    for slots, count in ((1, 8), (7, len(x))):  # one after the other takes long
        z = attack(model, x[:count], y[:count], search, threat, slots=slots)
        broken, here = ((images != x[:count]).flatten(1).any(1) for images in (whole[:count], z))
        need(torch.equal(broken, here), f"with {slots} slots other points are broken than with 64")
        same = not one_job or torch.equal(whole[:count], z)
        need(same, f"with {slots} slots other inputs are found than with 64: rows look at others")


def _few_classes(entry: Entry, threat: Threat) -> None:
    model, search = Rows().eval(), small(entry)
    x = points(model, 6)[0]
    for classes in (2, 3):
        ranks = [job.rank for job in search.jobs(threat, classes)]
        need(
            max(ranks) < classes, f"with {classes} classes the target of rank {max(ranks)} is none"
        )

        def few(z: torch.Tensor, classes: int = classes) -> torch.Tensor:
            logits: torch.Tensor = model(z)[:, :classes]
            return logits

        with torch.no_grad():
            y = few(x).argmax(1)
        z = attack(few, x, y, search, Threat(threat.norm, 4 * threat.eps))
        need(bool(z.isfinite().all()), f"with {classes} classes the result is not finite")
        with torch.no_grad():
            broken = int((few(z).argmax(1) != y).sum())
        need(broken > 0, f"with {classes} classes no point is broken at four times {threat}")
