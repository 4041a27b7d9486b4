"""Several devices, and a Ray cluster: the verdicts of one machine, whoever dies on the way."""

from __future__ import annotations

import importlib.util
import math
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import Tensor, nn

from robustkit.cli.program import program as main
from robustkit.core.device import pick_devices
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.budget import Budget, StoppingRule
from robustkit.evaluation.distributed.messages import (
    Attack,
    Done,
    Ended,
    Lost,
    Message,
    ModelSetup,
    Note,
    Order,
    PointData,
    Prove,
    Ready,
    Task,
)
from robustkit.evaluation.distributed.ray_pool import RayPool
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.distributed.setup import Setup, set_up
from robustkit.evaluation.distributed.worker import serve
from robustkit.evaluation.eps_grid import evaluate_grid
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.record import Record, load
from robustkit.registry import suites
from robustkit.search.audit import Audit

THREAT = Threat("linf", 0.06)
LINE = [
    "apgd(steps=4)",
    "apgd(loss=targeted_dlr, steps=3, targets=2)",
    "fab(steps=3, targets=2)",
    "square(queries=8)",
]
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")

# At its n-th pass in a worker it leaves a mark; the first worker to do so may die of it.
VICTIM = """
import multiprocessing, os
from pathlib import Path
from safetensors.torch import load_file
from torch import nn

HERE = Path({folder!r})

class Victim(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.left = nn.Linear(36, 4), {passes}

    def forward(self, x):
        self.left -= 1
        if self.left == 0 and multiprocessing.parent_process() is not None:
            try:
                (HERE / "mark").open("x").close()
            except FileExistsError:
                pass
            else:
                {then}
        return self.linear(x.flatten(1))

def make():
    model = Victim()
    model.load_state_dict(load_file(HERE / "weights.safetensors"))
    return model
"""

BUSY = "time.sleep(120)"


class Threads:
    """A pool within this process: worker and driver run as ever, only nothing is started.

    The first worker dies after `fuse` notes, and so does every one at its place.
    """

    fuse = 10**9

    def __init__(self, briefing: ModelSetup, devices: Sequence[str]) -> None:
        self.size, self._briefing = len(devices), pickle.dumps(briefing)
        self._said = queue.SimpleQueue[tuple[int, int, Note]]()
        self._heard = [0] * self.size
        self._lives = [0] * self.size
        self._orders = [self._start(place) for place in range(self.size)]
        self.lost = 0

    def _start(self, place: int) -> queue.SimpleQueue[Message]:
        orders, life = queue.SimpleQueue[Message](), self._lives[place]
        orders.put(pickle.loads(self._briefing))

        def send(note: Note) -> None:
            self._said.put((place, life, note))

        threading.Thread(target=serve, args=(orders.get, send, "cpu", None), daemon=True).start()
        return orders

    def submit(self, place: int, order: Task) -> None:
        self._orders[place].put(pickle.loads(pickle.dumps(order)))

    def wait(self, seconds: float) -> list[tuple[int, Note]]:
        try:
            place, life, note = self._said.get(timeout=seconds)
        except queue.Empty:
            return []
        if life != self._lives[place]:
            return []  # it is dead
        self._heard[place] += 1
        if place == 0 and self._heard[place] > self.fuse:
            self._heard[place], self._lives[place] = 0, life + 1
            self._orders[place] = self._start(place)
            self.lost += 1
            return [(place, Lost("test"))]
        return [(place, note)]

    def close(self) -> None:
        self._lives = [-1] * self.size


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[Threads]:
    """Put threads in the place of processes; every pool that is opened is appended."""
    opened: list[Threads] = []

    def starter(setup: Setup, briefing: ModelSetup) -> Callable[[], Threads]:
        def start() -> Threads:
            opened.append(Threads(briefing, setup.devices))
            return opened[-1]

        return start

    monkeypatch.setattr("robustkit.evaluation.distributed.setup._starter", starter)
    return opened


@dataclass(frozen=True)
class Audited:
    """A weak search, and an audit that finds more."""

    threshold: float = 0.002

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        return ["pgd(steps=1, step_size=0.3, random_start=false)"]

    def audit(self, threat: Threat) -> Audit:
        return Audit(LINE, near=0.2, random=0.2, least=4, threshold=self.threshold)


@pytest.fixture
def audited() -> Iterator[None]:
    suites.register("audited")(Audited)
    yield
    suites._entries.pop("audited")


@pytest.fixture
def run(blobs: Dataset, nearest: nn.Module, tmp_path: Path) -> Callable[..., Record]:
    """Evaluate the linear model on the blobs, in a folder of the given name."""

    def call(folder: str, model: Any = nearest, **options: Any) -> Record:
        given: dict[str, Any] = {"data": blobs, "threat": THREAT, "attacks": LINE, "device": "cpu"}
        if "suite" in options:
            del given["attacks"]
        return evaluate(model, name="toy", folder=tmp_path / folder, **{**given, **options})

    return call


@pytest.fixture
def victim(blobs: Dataset, prototypes: Tensor, tmp_path: Path) -> Callable[[int, str], list[str]]:
    """Write the model and its data; return the arguments that evaluate it."""
    x, y = blobs.fetch(range(48))
    np.savez(tmp_path / "blobs.npz", x=x.numpy(), y=y.numpy())
    flat = prototypes.flatten(1)
    weights = {"linear.weight": 2 * flat, "linear.bias": -flat.square().sum(1)}
    save_file(weights, tmp_path / "weights.safetensors")

    def write(passes: int, then: str) -> list[str]:
        code = VICTIM.format(folder=str(tmp_path), passes=passes, then=then)
        (tmp_path / "victim.py").write_text(code)
        model, data = f"{tmp_path / 'victim.py'}:make", f"npz:{tmp_path / 'blobs.npz'}"
        line = [word for spec in LINE for word in ("--attack", spec)]
        given = ["--data", data, "--threat", str(THREAT), "--certify", "none", "--quiet"]
        return ["evaluate", model, *given, *line]

    return write


def verdicts(record: Record) -> list[Any]:
    points = record.points
    return [points.index, points.label, points.predicted, points.status, points.attack]


def books(record: Record) -> list[Any]:
    rows = [(s.attack, s.entered, s.broken, s.jobs, s.forwards, s.backwards) for s in record.stages]
    return [*rows, record.forwards, record.backwards, record.flips]


def only(folder: Path) -> Record:
    (path,) = folder.glob("*/record.json")
    return load(path)


def near(one: Sequence[float | None] | None, two: Sequence[float | None] | None) -> bool:
    """Whether distances agree but for the last bits, which differ by the batch."""
    pairs = zip(one or (), two or (), strict=True)
    return all(a == b or (a and b and math.isclose(a, b, rel_tol=1e-5)) for a, b in pairs)


@pytest.mark.usefixtures("threads")
class TestSeveralDevices:
    def test_give_the_verdicts_and_the_costs_of_one(self, run: Callable[..., Record]) -> None:
        """With one slot no job of a point runs beside another: then costs are equal to the pass."""
        one = run("one", batch_size=1, n=32)
        two = run("two", batch_size=1, n=32, device="cpu,cpu")
        assert verdicts(two) == verdicts(one)
        assert {"robust", "broken", "misclassified"} == set(one.points.status)
        assert books(two) == books(one)
        assert near(two.points.distance, one.points.distance)
        assert "distributed: 2 processes on cpu, cpu" in two.notes

    @pytest.mark.slow
    @pytest.mark.parametrize("threshold", [0.002, 1.0])
    def test_draw_the_same_audit(
        self, run: Callable[..., Record], audited: None, threshold: float
    ) -> None:
        suite = f"audited(threshold={threshold})"
        one = run("one", suite=suite, batch_size=1, n=40)
        two = run("two", suite=suite, batch_size=1, n=40, device="cpu,cpu")
        assert one.audit is not None
        assert one.audit.escalated == (threshold < 1)
        assert two.audit == one.audit
        assert verdicts(two) == verdicts(one)
        assert books(two) == books(one)

    @pytest.mark.slow
    @pytest.mark.usefixtures("brief_adaptive")
    def test_are_lent_the_same_stand_ins(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        """A student is distilled once, by the driver; workers attack through it as well."""
        squashed = nn.Sequential(nearest, nn.Softmax(1)).eval()
        one, two = (
            evaluate(squashed, name="squashed", data=blobs, threat=THREAT, n=12, batch_size=4,
                     suite="adaptive(audit_least=2, queries=100)", device=device,
                     folder=tmp_path / device)
            for device in ("cpu", "cpu,cpu")
        )  # fmt: skip
        assert "probabilities" in {flag.name for flag in one.flags}
        assert "relay(patience=32, surrogate=student)" in one.attacks
        assert two.attacks == one.attacks
        assert verdicts(two) == verdicts(one)

    @pytest.mark.slow
    def test_prove_replay_and_seek_the_nearest_alike(self, run: Callable[..., Record],
                                                     tmp_path: Path) -> None:  # fmt: skip
        options: list[dict[str, Any]] = [
            {"certify": "ibp", "n": 20, "attack_certified": True},
            {"replay": tmp_path / "one-0", "n": 20},
            {"minimum_norm": True, "n": 12, "attacks": ["fmn(steps=4)", "fmn(steps=4, targets=2)"]},
        ]
        for number, given in enumerate(options):
            one = run(f"one-{number}", batch_size=1, **given)
            two = run(f"two-{number}", batch_size=1, device="cpu,cpu", **given)
            assert verdicts(two) == verdicts(one)
            assert books(two) == books(one)
            assert near(two.points.nearest, one.points.nearest)

    def test_go_down_a_grid_alike(self, blobs: Dataset, nearest: nn.Module,
                                  tmp_path: Path) -> None:  # fmt: skip
        given: dict[str, Any] = {
            "name": "toy", "data": blobs, "threat": THREAT, "grid": [0.02, 0.05, 0.08],
            "attacks": ["apgd(steps=4)"], "n": 16, "batch_size": 1,
        }  # fmt: skip
        one = evaluate_grid(nearest, folder=tmp_path / "one", device="cpu", **given)
        two = evaluate_grid(nearest, folder=tmp_path / "two", device="cpu,cpu", **given)
        assert list(map(verdicts, two)) == list(map(verdicts, one))
        assert list(map(books, two)) == list(map(books, one))

    @pytest.mark.slow
    def test_stop_at_a_budget_on_the_same_points(self, run: Callable[..., Record]) -> None:
        one = run("one", batch_size=1, n=60, budget=StoppingRule(Budget(forwards=500)))
        two = run(
            "two", batch_size=1, n=60, budget=StoppingRule(Budget(forwards=500)), device="cpu,cpu"
        )
        assert one.data.planned is not None
        assert verdicts(two) == verdicts(one)
        assert books(two) == books(one)

    @pytest.mark.slow
    def test_show_their_progress_as_one_does(self, run: Callable[..., Record]) -> None:
        class Heard(Watcher):
            def __init__(self) -> None:
                self.stages: list[tuple[str, int]] = []
                self.last: dict[str, tuple[int, int, int]] = {}

            def stage(self, name: str, tasks: int) -> None:
                self.stages.append((name, tasks))

            def advance(self, done: int, robust: int, points: int) -> None:
                self.last[self.stages[-1][0]] = done, robust, points

        one, two = Heard(), Heard()
        run("one", batch_size=1, n=24, watcher=one)
        run("two", batch_size=1, n=24, watcher=two, device="cpu,cpu")
        assert two.stages == one.stages
        robust = [{name: seen[1:] for name, seen in heard.last.items()} for heard in (one, two)]
        assert robust[0] == robust[1]

    def test_raise_what_one_raises(self, run: Callable[..., Record]) -> None:
        with pytest.raises(
            RobustkitError, match="a worker failed: OverflowError: too many"
        ) as seen:
            run("out", model=Picky(), device="cpu,cpu")
        assert "OverflowError" in str(seen.value.__cause__)


class Picky(nn.Module):
    """Fails where a worker wants a gradient of more than a few inputs."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 6, 6] -> [b, 4]."""
        here = threading.current_thread() is threading.main_thread()
        if x.requires_grad and not here and len(x) != 16:
            raise OverflowError("too many")
        return x.flatten(1)[:, :4] * 3


class TestDeath:
    @pytest.mark.slow
    @pytest.mark.parametrize("fuse", [2, 9])
    @pytest.mark.parametrize(
        "options",
        [
            {"certify": "ibp", "attack_certified": True},
            {"minimum_norm": True, "attacks": ["fmn(steps=4)", "fmn(steps=4, targets=2)"]},
        ],
        ids=["line-up", "nearest"],
    )
    def test_of_workers_loses_and_doubles_nothing(
        self, run: Callable[..., Record], monkeypatch: pytest.MonkeyPatch, threads: list[Threads],
        fuse: int, options: dict[str, Any],
    ) -> None:  # fmt: skip
        one = run("one", batch_size=1, n=16, **options)
        monkeypatch.setattr(Threads, "fuse", fuse)
        two = run("two", batch_size=1, n=16, device="cpu,cpu", **options)
        (pool,) = threads
        assert pool.lost > 0
        assert verdicts(two) == verdicts(one)
        assert near(two.points.distance, one.points.distance)
        # What was in flight is done again, and counted once: when it has come.
        assert books(two) == books(one)

    @pytest.mark.slow
    def test_of_a_process_is_survived(
        self, victim: Callable[[int, str], list[str]], tmp_path: Path
    ) -> None:
        arguments = [*victim(60, "os._exit(17)"), "--batch-size", "1"]
        for folder, devices in (("one", "cpu"), ("two", "cpu,cpu")):
            where = ["--out", str(tmp_path / folder), "--device", devices]
            assert main([*arguments, *where], standalone_mode=False) == 0
        assert (tmp_path / "mark").exists()
        one, two = only(tmp_path / "one"), only(tmp_path / "two")
        assert verdicts(two) == verdicts(one)
        assert books(two) == books(one)

    @pytest.mark.slow
    def test_of_the_driver_is_survived(
        self, victim: Callable[[int, str], list[str]], tmp_path: Path
    ) -> None:
        """Workers end with the driver, busy or not; one device goes on where two were."""
        note = tmp_path / "pid"
        line = victim(150, f"import time; (HERE / 'pid').write_text(str(os.getpid())); {BUSY}")
        arguments = [*line, "--out", str(tmp_path / "out"), "--batch-size", "1", "--device"]
        driver = subprocess.Popen([sys.executable, "-m", "robustkit", *arguments, "cpu,cpu"])
        assert within(300, lambda: note.exists() and note.read_text() != "")
        worker = int(note.read_text())
        assert running(worker)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert within(2, lambda: not running(worker))
        assert not (tmp_path / "out" / "record.json").exists()
        (ledger,) = (tmp_path / "out").glob("*/ledger.sqlite")
        with Ledger(ledger, None) as kept:
            known = len(kept.clean())
        assert known == 48
        assert main([*arguments, "cpu"], standalone_mode=False) == 0
        alone = [*line, "--out", str(tmp_path / "one"), "--batch-size", "1", "--device", "cpu"]
        assert main(alone, standalone_mode=False) == 0
        assert verdicts(only(tmp_path / "out")) == verdicts(only(tmp_path / "one"))

    def test_again_and_again_ends_the_run(self) -> None:
        deaths: list[list[tuple[int, Note]]] = [[(0, LOST), (0, READY)]] * 9
        pool = Script([[(0, READY)], *deaths])
        with (
            Scheduler("toy", "", lambda: pool, Watcher()) as crew,
            pytest.raises(RobustkitError, match=r"died 3 times in a row .* \(the last: killed\)"),
        ):
            crew.run(["part"], lambda _: ORDER, lambda *_: None, lambda part: part)
        assert pool.closed

    def test_with_results_in_between_does_not(self) -> None:
        lives: list[list[tuple[int, Note]]] = [[(0, Ended(1)), (0, LOST), (0, READY)]] * 9
        heard: list[Note] = []
        pool = Script([[(0, READY)], *lives, [(0, Done())]])
        with Scheduler("toy", "", lambda: pool, Watcher()) as crew:
            crew.run(["part"], lambda _: ORDER, lambda _, note: heard.append(note), lambda p: p)
        assert len(heard) == 9
        assert pool.submitted == 10


READY, LOST = Ready("cpu", 4, "x"), Lost("killed")
ORDER = Order(
    Prove([0], set(), "ibp", THREAT), PointData([0], np.zeros((1, 1), np.float32), np.zeros(1, int))
)


def running(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


class Script:
    """A pool of one worker that says what was written down."""

    size = 1

    def __init__(self, lines: list[list[tuple[int, Note]]]) -> None:
        self.lines, self.submitted, self.closed = iter(lines), 0, False

    def submit(self, place: int, order: Task) -> None:
        self.submitted += 1

    def wait(self, seconds: float) -> list[tuple[int, Note]]:
        return next(self.lines)

    def close(self) -> None:
        self.closed = True


@needs_ray
@pytest.mark.slow
class TestRay:
    @pytest.fixture
    def cluster(self) -> Iterator[str]:
        """Two nodes of one CPU."""
        from ray.cluster_utils import Cluster

        nodes: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        nodes.add_node(num_cpus=1)
        yield str(nodes.address)
        nodes.shutdown()

    def test_gives_the_verdicts_of_one_machine_though_a_worker_is_killed(
        self, run: Callable[..., Record], cluster: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import ray

        submit, kills = RayPool.submit, list[int]()

        def submit_and_kill(pool: RayPool, place: int, order: Order) -> None:
            submit(pool, place, order)
            if isinstance(order.work, Attack) and not kills:
                kills.append(place)
                ray.kill(pool._actors[place])

        monkeypatch.setattr(RayPool, "submit", submit_and_kill)
        with pytest.raises(UsageError, match="too few for 3 workers"):
            run("three", distributed=f"ray:{cluster}", workers=3, n=4)
        two = run("two", distributed=f"ray:{cluster}", batch_size=1, n=24)
        one = run("one", batch_size=1, n=24)
        assert kills
        assert not ray.is_initialized()
        assert verdicts(two) == verdicts(one)
        assert books(two) == books(one)


class TestErrors:
    def test_a_model_that_cannot_be_pickled(
        self, run: Callable[..., Record], nearest: nn.Module
    ) -> None:
        with pytest.raises(UsageError, match=r"toy cannot be sent to workers .* top of a module"):
            run("out", model=lambda x: nearest(x), device="cpu,cpu")

    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match="expected device auto, cpu, cuda or cuda:0, got 'x'"):
            set_up("cpu,x", None, None)
        assert [device.type for device in pick_devices("cpu, cpu")] == ["cpu", "cpu"]

    def test_what_cannot_be_distributed_so(self) -> None:
        with pytest.raises(UsageError, match="expected --distributed ray or ray:ADDRESS"):
            set_up("cpu", "slurm", None)
        with pytest.raises(UsageError, match="2 devices for 1 workers"):
            set_up("cpu,cpu", None, 1)
        with pytest.raises(UsageError, match="at least 1 worker"):
            set_up("cpu", None, 0)
        assert set_up("cpu", None, None) is None
        assert set_up("cpu", None, 3) == Setup(("cpu", "cpu", "cpu"))

    def test_ray_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(UsageError, match=r'pip install "robustkit-eval\[ray\]"'):
            set_up("cpu", "ray", None)

    @needs_ray
    def test_no_cluster_answers(self, run: Callable[..., Record]) -> None:
        with pytest.raises(UsageError, match=r"no Ray cluster at 127.0.0.1:1 .*ray start --head"):
            run("out", distributed="ray:127.0.0.1:1", n=4)

    @needs_ray
    def test_ray_chooses_the_devices(self) -> None:
        with pytest.raises(UsageError, match="Ray gives each worker a device of its own"):
            set_up("cpu,cpu", "ray", None)


def test_the_plan_in_the_docs_is_what_its_code_prints() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "howto" / "clusters.md"
    code, told = re.findall(r"```(?:python|text)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == told
