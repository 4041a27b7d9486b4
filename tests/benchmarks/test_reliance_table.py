"""The reliance benchmark: a small training shows what the large one does, and a failure is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import reliance
from robustkit.data.open import open_dataset
from robustkit.verify.diagnostics.blocks import named_block


def test_a_network_on_slabs_hangs_on_the_linear_feature(capsys: pytest.CaptureFixture[str]) -> None:
    data = open_dataset("slabs(kind=lms5, n=4000)", split="train")
    model = reliance.train(reliance.table_net, data, 12, seed=0)
    found = reliance.measure(model, open_dataset("slabs"), named_block("S=0", data.shape), 1000)
    assert found[0] > 0.97 and abs(found[1] - 0.5) < 0.06 and found[2] > 0.9
    reliance.show([("lms5", found), ("ms57", ())])
    told = capsys.readouterr().out
    assert "(published 0.507)" in told and "no better than guessing" in told


def test_what_is_no_better_than_guessing_is_no_figure() -> None:
    data = open_dataset("slabs(kind=lms5, n=400)")
    wrong = nn.Linear(50, 2)
    nn.init.zeros_(wrong.weight)
    nn.init.zeros_(wrong.bias)
    with torch.no_grad():  # class 0 where the linear feature says 1, and the other way round
        wrong.weight[:, 0] = torch.tensor([1.0, -1.0])
        wrong.bias.copy_(torch.tensor([-0.5, 0.5]))
    block = named_block("S=0", data.shape)
    assert reliance.measure(nn.Sequential(nn.Flatten(), wrong), data, block, 400) == ()
