"""What an attack is: one step of many independent slots.

A search never calls the model and owns no loop. The engine evaluates the model at the `query` of
every slot at once and hands back a `Reply`; `step` answers with the next state. So that slots can
be filled, retired and refilled at any time, a state is a NamedTuple of tensors with a leading slot
axis, counters and step sizes included, and no row may look at another.

    state = search.start(tasks, threat)
    while slots are live:
        reply = the model at state.query
        state = search.step(state, reply, threat)

The engine watches every query: the first one that is misclassified and inside the threat model
ends its slot, after verification. A search only has to move toward such points, and to set `done`
when its budget is used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar, cast, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from robustkit.core.named import NamedThreat
from robustkit.core.rng import Keys, task_key
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Logits, Mask, Scalars
from robustkit.registry import threats


class Job(NamedTuple):
    """One run of an attack on one point. Every point gets the same list of jobs.

    Attributes:
        rank: the target is the class with the rank-th highest clean logit; 0 means untargeted.
        restart: number of the restart.
    """

    rank: int = 0
    restart: int = 0

    def key(self, attack: str) -> int:
        """Identity of this job in the random streams."""
        return task_key(f"{attack}/{self.rank}/{self.restart}")


def list_jobs(targets: int, restarts: int, classes: int) -> list[Job]:
    """List the restarts of an untargeted run (`targets` = 0), or of each of so many targets.

    There are never more targets than wrong classes.
    """
    ranks = range(1, min(targets, classes - 1) + 1) if targets else (0,)
    return [Job(rank, restart) for rank in ranks for restart in range(restarts)]


class Tasks(NamedTuple):
    """What fresh slots start from; every tensor has the leading axis `s`.

    Attributes:
        x: clean points.
        y: their labels, which are also what the model predicts on `x`.
        ranked: classes by falling clean logit, the predicted one first [s, m]; m is 1 + the most
            that the searches of a run aim at.
        target: the class to move toward, −1 where the job is untargeted.
        seed, point, task: the identity of the random stream, see `keys`.
    """

    x: Images
    y: Labels
    ranked: Int[Tensor, "s m"]
    target: Labels
    seed: Labels
    point: Labels
    task: Labels

    @property
    def keys(self) -> Keys:
        """The random stream of each slot."""
        return Keys(self.seed, self.point, self.task)


class Reply(NamedTuple):
    """The model's answer at `state.query`.

    Attributes:
        logits: [s, k] float32.
        value: the search's objective [s].
        gradient: of the objective by the query [s, *f]; empty for forward-only searches.
    """

    logits: Logits
    value: Scalars
    gradient: Images


@runtime_checkable
class State(Protocol):
    """A NamedTuple of tensors. The engine reads these two fields; the rest is the search's own."""

    @property
    def query(self) -> Images:
        """Where the model is evaluated next."""
        ...

    @property
    def done(self) -> Mask:
        """Which slots have used up their budget (their query is not evaluated any more)."""
        ...


S = TypeVar("S", bound=State)
Rows = TypeVar("Rows")


class Search(Protocol[S]):
    """One attack. Implementations are frozen dataclasses whose fields are the options.

    Three options mean something to the engine: `surrogate` (str) names a surrogate that the model
    declares, `eot` (int) the passes that are averaged at every query, `patience` (int) the queries
    after which a slot without hope may give up (`robustkit.search.patience`). A search that chooses
    its targets itself says by `aims` (int) how many classes it may choose from; a state that knows
    how near it came to a success says so by `closest` (one number per slot, higher is nearer); one
    with slots that need a gradient at times says which do now by `climbing` (a mask; on a GPU all
    get one, unless it is a surrogate's). One that follows another function of the query than the
    model, such as the model of transformed inputs, returns it by `through(model, state, draw)`, for
    each draw from 0 to eot - 1. A search that goes on toward the clean point after a success says
    so by `minimizes = True`.
    """

    @property
    def uses_gradient(self) -> bool:
        """Whether `Reply.gradient` is needed; without it the engine runs forward passes only."""
        ...

    @property
    def stays_inside(self) -> bool:
        """Whether every query lies inside the threat model.

        Then a query outside is an error of the search; otherwise it is merely no candidate.
        """
        ...

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """List the runs that every point gets, in order.

        Raises:
            UsageError: when the attack does not support the threat model.
        """
        ...

    def start(self, tasks: Tasks, threat: Threat) -> S:
        """Make fresh slots. No model evaluation is available yet."""
        ...

    def objective(self, logits: Logits, state: S) -> Scalars:
        """Return the per-slot value to climb, differentiable in `logits`."""
        ...

    def step(self, state: S, reply: Reply, threat: Threat) -> S:
        """Take in the answer at `state.query` and choose the next query. Rows are independent."""
        ...


def surrogate_of(search: object) -> str:
    """Return the surrogate that a search follows; "" where it follows the model itself."""
    return str(getattr(search, "surrogate", ""))


def draws(search: object) -> int:
    """Return how many passes a search averages at every query (expectation over randomness)."""
    return int(getattr(search, "eot", 1))


def aims(search: object, jobs: Sequence[Job]) -> int:
    """Return how many wrong classes a search needs to know, in order of the clean logits."""
    return max(int(getattr(search, "aims", 0)), *(job.rank for job in jobs))


def minimizes(search: object) -> bool:
    """Tell whether a search seeks the nearest adversarial input, not just one at a given radius."""
    return bool(getattr(search, "minimizes", False))


def enumerates(search: object) -> bool:
    """Tell whether an attack, or a suite, tries every input of a finite threat model."""
    return bool(getattr(search, "enumerates", False))


def needs_no_norm(search: object) -> bool:
    """Tell whether an attack, or a suite, is for threat models that are no ball of a norm."""
    kinds = {entry.target.searched_by for entry in threats.entries()}
    return any(bool(getattr(search, kind, False)) for kind in kinds)


def suits(search: object, threat: Threat) -> bool:
    """Tell whether an attack, or a suite, is made for the kind of a threat model.

    Which norms it supports is for the attack to say.
    """
    return not isinstance(threat, NamedThreat) or bool(getattr(search, threat.searched_by, False))


def select(rows: Rows, index: Int[Tensor, " r"]) -> Rows:
    """Return some rows of a NamedTuple of tensors."""
    fields = cast("tuple[Tensor, ...]", rows)
    return type(rows)(*(field[index] for field in fields))


def place(rows: Rows, index: Int[Tensor, " r"], fresh: Rows) -> Rows:
    """Return a NamedTuple of tensors with the rows `index` replaced by `fresh`."""
    pairs = zip(cast("tuple[Tensor, ...]", rows), cast("tuple[Tensor, ...]", fresh), strict=True)
    return type(rows)(*(old.index_copy(0, index, new) for old, new in pairs))
