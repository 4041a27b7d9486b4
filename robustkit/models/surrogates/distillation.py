"""Distillation: a small network trained on a defense's logits inside the balls to be attacked.

A surrogate of last resort for models that have no useful gradient.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.files import write
from robustkit.core.losses import input_gradient
from robustkit.core.rng import Keys, task_key, uniform
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Logits, Model
from robustkit.models.architectures import small_cnn
from robustkit.models.surrogates.pre_squash import unit

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

STEPS, BATCH, RATE = 400, 64, 2e-3
_SIDE = 16  # pixels from which on three strided convolutions have something to pool
FILE = "student.safetensors"


class Student(nn.Module):
    """A distilled network; `forwards` counts the teacher's passes of one input."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.net, self.forwards = _network(shape, classes), 0

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k]."""
        logits: Tensor = self.net(x)
        return logits


def distill(
    model: Model,
    x: Images,
    threat: Threat,
    seed: int,
    folder: Path,
    *,
    steps: int = STEPS,
    teacher: str = "",
) -> Student:
    """Train a student on the logits of `model` inside the balls around `x` [n, *f].

    Half of each batch are random points of the balls (`Threat.sample`), half are one FGSM step away
    from there against the student, so that the two agree where an attack on the student will go
    (Jacobian-based augmentation, Papernot et al. 2017, arXiv:1602.02697). The loss compares the
    order and the relative spread of the logits, not their scale, so that any output can be learned:
    probabilities and one-hot codes too. On one device, the result is a function of the arguments.

    Differs from the paper: the step is of length eps in the threat model, fresh in every batch, and
    the teacher's logits are learned, not its labels alone.

    The student is stored in `folder` as safetensors, and read from there when `teacher` (its
    digest), points, threat model, seed and steps are the same again.

    Raises:
        RobustkitError: when the file cannot be written.
    """
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    key, path = _key(x, threat, seed, steps, classes, teacher), folder / FILE
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        student = Student(tuple(x.shape[1:]), classes)
        student.to(x.device)
        if not _read(student, path, key):
            _train(student, model, x, threat, seed, steps)
            _store(student, path, key)
    return student.eval().requires_grad_(False)


def _train(
    student: Student, model: Model, x: Images, threat: Threat, seed: int, steps: int
) -> None:
    student.train()
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    for number in range(steps):
        rows = _rows(len(x), seed, number).to(x.device)
        query = _queries(student, x[rows], rows, threat, seed, number)
        with torch.no_grad():
            teacher = model(query).float()
        student.forwards += len(query)
        with torch.enable_grad():
            loss = _distance(student(query), teacher)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()


def _rows(n: int, seed: int, number: int) -> Labels:
    """Choose the points of a batch: epoch after epoch through all of them, reshuffled each time."""
    first, last = number * BATCH // n, ((number + 1) * BATCH - 1) // n
    orders = torch.cat([_order(n, seed, epoch) for epoch in range(first, last + 1)])
    return orders[number * BATCH - first * n :][:BATCH]


def _order(n: int, seed: int, epoch: int) -> Labels:
    keys = Keys(*(torch.tensor([v]) for v in (seed, epoch, task_key("student/order"))))
    return uniform(keys, n, 0)[0].argsort()


def _queries(
    student: Student, x: Images, rows: Labels, threat: Threat, seed: int, number: int
) -> Images:
    """Draw from the balls; every other point takes one FGSM step against the student."""
    place = torch.arange(len(rows), device=rows.device)
    task = torch.full_like(rows, task_key("student"))
    keys = Keys(torch.full_like(rows, seed), rows, task + place)
    drawn = threat.sample(x, keys, torch.full_like(rows, number))
    gradient = input_gradient(student, drawn)[1]
    slope = torch.zeros_like(drawn) if gradient is None else -gradient  # toward another class
    ahead = threat.project(drawn + threat.eps * threat.steepest(slope), x)
    return torch.where((place % 2 == 0).view(-1, *[1] * (x.ndim - 1)), drawn, ahead).detach()


def _distance(student: Logits, teacher: Logits) -> Tensor:
    """Mean squared error of standardized logits, plus cross-entropy to the teacher's class."""
    return F.mse_loss(unit(student), unit(teacher)) + F.cross_entropy(student, teacher.argmax(1))


def _network(shape: tuple[int, ...], classes: int) -> nn.Module:
    if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= _SIDE:
        return small_cnn((shape[0], shape[1], shape[2]), classes, width=16)
    size = int(torch.tensor(shape).prod())
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, classes))


def _key(x: Images, threat: Threat, seed: int, steps: int, classes: int, teacher: str) -> str:
    content = x.detach().cpu().contiguous().numpy().tobytes()
    options = f"{list(x.shape)}/{threat}/{seed}/{steps}/{classes}/{teacher}".encode()
    return hashlib.sha256(content + options).hexdigest()


def _read(student: Student, path: Path, key: str) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return False
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):  # none yet, or a damaged file: train it
        return False
    student.net.load_state_dict(state)
    student.forwards = int(metadata["forwards"])
    return True


def _store(student: Student, path: Path, key: str) -> None:
    from safetensors.torch import save

    state = {
        name: value.detach().cpu().contiguous() for name, value in student.net.state_dict().items()
    }
    write(save(state, {"key": key, "forwards": str(student.forwards)}), path)
