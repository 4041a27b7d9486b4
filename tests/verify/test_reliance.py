"""Reliance: exact for planted models, joint permutations, blocks, resuming, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from robustkit.cli.program import program as main
from robustkit.core.rng import generator, task_key
from robustkit.data.arrays import as_dataset
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.verify.diagnostics.blocks import Block, masked, named_block, ready_blocks
from robustkit.verify.diagnostics.reliance import Asked, Reliance, measure_reliance

SHAPE = (1, 4, 4)


class Linear(nn.Module):
    """Class 1 where w · (x − 1/2) is above 0."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        score = (x - 0.5).flatten(1) @ self.weight
        return torch.stack([-score, score], 1)


def planted(used: list[int], n: int = 400) -> tuple[Linear, Dataset]:
    """A linear model that uses some of 16 features, and points that it is right on."""
    weight = torch.zeros(16)
    weight[used] = 1.0
    x = torch.rand(n, *SHAPE, generator=generator(0, 3, len(used)))
    model = Linear(weight)
    return model, as_dataset("planted", (x, model(x).argmax(1)))


def measured(model: nn.Module, data: Dataset, blocks: list[Block], **more: Any) -> Reliance:
    points = list(range(len(data)))
    return measure_reliance(Asked({"model": model}), data, points, blocks, **more)


def block(name: str, chosen: list[int]) -> Block:
    mask = torch.zeros(16, dtype=torch.bool)
    mask[chosen] = True
    return masked(name, mask.view(SHAPE), SHAPE)


def test_a_block_that_is_not_used_is_ignored_and_one_that_is_all_leaves_chance() -> None:
    model, data = planted([3])
    blocks = [block("used", [3]), block("unused", [0, 1, 2]), block("empty", []),
              block("all", list(range(16)))]  # fmt: skip
    found = {row.block: row for row in measured(model, data, blocks).rows}
    assert found["unused"].reliance == found["empty"].reliance == 0
    assert found["unused"].accuracy == found["empty"].accuracy == 1
    for name in ("used", "all"):
        assert found[name].accuracy == pytest.approx(0.5, abs=0.03)
        assert found[name].low <= 1 <= found[name].high
    assert found["used"] == found["all"]._replace(block="used")  # one feature says it all


def test_the_accuracy_is_that_of_the_formula() -> None:
    model, data = planted([3, 5], 60)
    x, y = data.fetch(range(60))
    expected = []
    for k in range(3):
        order = torch.randperm(60, generator=generator(7, task_key("reliance"), k))
        z = x.clone()
        z.flatten(1)[:, [3, 9]] = x.flatten(1)[order][:, [3, 9]]
        expected.append(model(z).argmax(1) == y)
    right = torch.stack(expected).double()
    (row,) = measured(model, data, [block("two", [3, 9])], permutations=3, seed=7).rows
    assert row.accuracy == pytest.approx(float(right.mean()))
    assert row.reliance == pytest.approx((1 - float(right.mean())) / 0.5)


def test_what_lies_inside_a_block_moves_together() -> None:
    """A class that two features tell by agreeing: their joint swap keeps the rule, but not y."""

    class Agree(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            signs = (x.flatten(1)[:, :2] > 0.5).long()
            same = (signs[:, 0] == signs[:, 1]).float()
            return torch.stack([1 - same, same], 1)

    x = torch.rand(300, *SHAPE, generator=generator(0, 4, 4))
    x.flatten(1)[:, 1] = x.flatten(1)[:, 0]  # they always agree
    data = as_dataset("agree", (x, torch.ones(300, dtype=torch.long)))
    both, one = measured(Agree(), data, [block("both", [0, 1]), block("one", [0])]).rows
    assert both.accuracy == 1.0
    assert one.accuracy < 0.7


def test_the_seed_fixes_the_table_and_the_interval_holds_the_value() -> None:
    model, data = planted([3, 5, 6, 7])
    blocks = ready_blocks(SHAPE)
    first, again, other = (measured(model, data, blocks, seed=s) for s in (1, 1, 2))
    assert first.rows == again.rows
    assert first.rows != other.rows
    for row in first.rows:
        assert row.low <= row.reliance <= row.high
    assert {"top half", "cell 4,4", "mean and contrast", "low frequencies"} <= {*first.blocks}


def test_ready_blocks_cover_the_input() -> None:
    shape = (3, 9, 11)
    x, donor = torch.zeros(2, *shape), torch.ones(2, *shape)
    blocks = {one.name: one for one in ready_blocks(shape)}
    cells = [blocks[f"cell {r},{c}"].swap(x, donor) for r in range(1, 5) for c in range(1, 5)]
    assert torch.equal(torch.stack(cells).sum(0), donor)
    for pair in (("top half", "bottom half"), ("left half", "right half")):
        assert torch.equal(blocks[pair[0]].swap(x, donor) + blocks[pair[1]].swap(x, donor), donor)
    assert torch.equal(blocks["top half"].others.swap(x, donor),
                       blocks["bottom half"].swap(x, donor))  # fmt: skip
    assert blocks["channel 1"].swap(x, donor).sum((0, 2, 3)).tolist() == [0, 198, 0]
    drawn = torch.rand(2, 2, *shape, generator=generator(0, 5, 5)) * 0.5 + 0.25
    mixed = blocks["low frequencies"].swap(drawn[0], drawn[1])
    rest = blocks["high frequencies"].swap(drawn[1], drawn[0])
    torch.testing.assert_close(mixed, rest, atol=1e-6, rtol=0)
    assert not torch.equal(mixed, drawn[0])
    torch.testing.assert_close(mixed.mean((2, 3)), drawn[1].mean((2, 3)), atol=2e-2, rtol=0)
    painted = blocks["colour statistics"].swap(drawn[0], drawn[1])
    torch.testing.assert_close(painted.mean((2, 3)), drawn[1].mean((2, 3)), atol=1e-2, rtol=0)
    assert len(ready_blocks((1, 1, 50))) == 50


class Two(nn.Module):
    """An ensemble of two."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def predictors(self, x: Tensor) -> Tensor:
        return torch.stack([self.first(x), self.second(x)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictors(x).mean(1)


def compared(first: list[int], second: list[int]) -> Reliance:
    _, data = planted([3])
    x, y = data.fetch(range(len(data)))
    x[:, 0, 0, 1] = x[:, 0, 0, 3]  # features 1 and 3 say the same
    weights = torch.zeros(2, 16)
    weights[0, first], weights[1, second] = 1.0, 1.0
    data = as_dataset("both", (x, y))
    asked = Asked.of({"two": Two(Linear(weights[0]), Linear(weights[1]))}, x[:2])
    blocks = [block("1", [1]), block("3", [3]), block("9", [9])]
    return measure_reliance(asked, data, list(range(len(data))), blocks)


def test_an_ensemble_whose_members_use_the_same_is_not_diverse() -> None:
    alike, apart = compared([3], [3]), compared([1], [3])
    assert alike.names == ["two", "member 1", "member 2"]
    assert alike.members == ["member 1", "member 2"]
    assert alike.verdict == "diversity not seen"
    assert alike.similarity == {("member 1", "member 2"): pytest.approx(1.0)}
    assert apart.verdict == "members differ on the blocks"
    assert abs(apart.similarity["member 1", "member 2"]) < 0.2
    model, data = planted([3])
    assert measured(model, data, [block("3", [3])]).verdict is None


def test_what_cannot_be_measured_is_refused() -> None:
    model, data = planted([3])
    with pytest.raises(UsageError, match="blocks of different names"):
        measured(model, data, [block("a", [1]), block("a", [2])])
    with pytest.raises(UsageError, match="no accuracy that could hang"):
        measured(Linear(-torch.eye(16)[3]), data, [block("a", [1])])
    for text in ("a", "a=", "=1", "a=16", "a=3-1", "a=x"):
        with pytest.raises(UsageError, match="coordinates from 0 to 15"):
            named_block(text, SHAPE)
    with pytest.raises(UsageError, match="a mask of bool"):
        masked("a", torch.ones(SHAPE), SHAPE)
    with pytest.raises(UsageError, match="a table of 100 features"):
        ready_blocks((1, 1, 100))


def test_the_command_resumes_and_writes_what_it_prints(tmp_path: Path) -> None:
    np.savez(tmp_path / "masks.npz", top=np.arange(784).reshape(1, 28, 28) < 392)
    words = ["diagnose", "undefended", "--reliance", "--n", "40", "--permutations", "2",
             "--masks", str(tmp_path / "masks.npz"), "--block", "edge=0-27", "--json"]  # fmt: skip
    out = tmp_path / "out"
    first = CliRunner().invoke(main, [*words, "--out", str(out)])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert told["schema"] == "robustkit/reliance/1"
    assert [row["block"] for row in told["rows"]] == ["edge", "top"]
    state = json.loads((out / "state.json").read_text())
    state["measured"] = {key: state["measured"][key] for key in ("/0", "edge/0")}
    (out / "state.json").write_text(json.dumps(state))
    again = CliRunner().invoke(main, [*words, "--out", str(out)])
    assert json.loads(again.stdout) == told
    lines = (out / "reliance.csv").read_text().splitlines()
    assert lines[0] == "member,block,accuracy,reliance,low,high" and len(lines) == 3
    other = CliRunner().invoke(main, [*words, "--seed", "3", "--out", str(out)])
    assert other.exit_code == 2 and "another --out" in other.output.replace("\n", " ")
    bare = CliRunner().invoke(main, ["diagnose", "undefended"])
    assert bare.exit_code == 2 and "--reliance" in bare.output


def test_members_are_named_and_a_random_ensemble_repeats_itself() -> None:
    words = ["diagnose", "crossmax", "--reliance", "--n", "20", "--permutations", "1", "--json",
             "--block", "left=0-391"]  # fmt: skip
    runs = [json.loads(CliRunner().invoke(main, words).stdout) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]["pairs"]) == 15 and runs[0]["verdict"]
    parts = [*words[:1], "mixednuts", *words[2:], "--member", "bypass", "--member", "part.nothing"]
    told = CliRunner().invoke(main, parts)
    assert told.exit_code == 2 and "part.PATH" in told.output.replace("\n", " ")
