"""The toy policy's defenses: losses by hand, the training attack, what is held out."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from robustkit.core.rng import generator
from robustkit.core.tokens import token_ids
from robustkit.data.open import open_dataset
from robustkit.data.toy_grammar import FORBIDDEN, NOUN_AT, ids_of, prompts
from robustkit.models.load import load_model
from robustkit.models.protocols import assemble
from robustkit.models.training import Step
from robustkit.registry import defenses

defenses.entries()  # the pack has to be loaded before its modules are asked for
policy: Any = sys.modules["robustkit.defenses._policy"]
DATA = open_dataset("toy-lm", split="train")


def test_cut_offs_by_hand() -> None:
    value = torch.tensor([-7.0, -5.0, -4.0, 0.2, 0.9])
    away = policy.cut(value, -5.0)
    torch.testing.assert_close(away, torch.tensor([-5.007, -5.0, -4.0, 0.2, 0.9]))
    torch.testing.assert_close(policy.cut(value[3:], 0.5), torch.tensor([0.5002, 0.9]))


def test_preference_loss_is_zero_at_half_the_inverse_of_beta() -> None:
    loss = policy.preference_loss(torch.tensor([2.0, 0.0, 3.0]), 0.25)
    assert loss.tolist() == [0.0, 4.0, 1.0]


def test_prompts_are_split_and_labeled_by_the_rule() -> None:
    train, test = prompts("train"), prompts("test")
    together = {tuple(row) for row in (*train.ids.tolist(), *test.ids.tolist())}
    assert len(together) == len(train.ids) + len(test.ids) == 12 * 24 * 8
    forbidden = [row[NOUN_AT] in ids_of(*FORBIDDEN) for row in test.ids.tolist()]
    near = [label for label, there in zip(test.labels, forbidden, strict=True) if there]
    assert set(near) == {0, 1}  # a forbidden noun alone does not make a prompt harmful
    assert all(label for label, there in zip(test.labels, forbidden, strict=True) if not there)


def test_half_of_the_forbidden_nouns_is_never_attacked() -> None:
    x, y = DATA.fetch(range(len(DATA)))
    batch = policy.batch_of(x, y)
    seen = set(batch.attacked[:, NOUN_AT].tolist())
    assert seen == set(ids_of(*FORBIDDEN[:6]))


def test_training_attack_stays_in_its_balls_and_off_padding() -> None:
    model: Any = load_model("toy_sft", data=DATA).model
    x, y = DATA.fetch(range(40))
    ids = policy.batch_of(x, y).attacked
    prompt, moved = policy.attacked(model, ids, 0.1, 5)
    radius = 0.1 * float(model.unit().detach())
    assert float(moved.norm(dim=2).max()) <= radius * (1 + 1e-5)
    assert not moved[ids == 0].any()
    with torch.no_grad():
        target = model.dialogue.affirmative(ids)
        before = model.forced(policy.plain_prompt(model, ids), target)[0]
        after = model.forced(prompt, target)[0]
    assert bool((after > before).all())


def test_random_words_fill_only_free_places() -> None:
    ids = token_ids(DATA.fetch(range(20))[0])
    filled = policy.filled(ids, 4, generator(0, 0, 0))
    added = (filled != ids).sum(1)
    assert torch.equal(filled[:, :8], ids[:, :8])
    assert int(added.min()) >= 1
    assert int(added.max()) <= 4


@pytest.mark.parametrize("name", ["toy_sft", "toy_advul", "toy_advul(seeds=2)", "toy_advipo"])
def test_objectives_are_repeated_by_a_step_and_reach_all_weights(name: str) -> None:
    defense = defenses.build(name)
    torch.manual_seed(0)
    model = assemble(defense, DATA).train()
    x, y = DATA.fetch(range(24))
    once, again = (defense.objective(model, x, y, Step(0.5, generator(0, 1, 0))) for _ in range(2))
    assert torch.equal(once, again)
    once.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_toy_advipo_begins_at_the_loss_of_no_gap() -> None:
    defense = defenses.build("toy_advipo(beta=0.25)")
    model = assemble(defense, DATA)
    x, y = DATA.fetch(range(24))
    loss = defense.objective(model, x, y, Step(0.0, generator(0, 1, 0)))
    assert float(loss.detach()) == pytest.approx(4.0, abs=1e-4)  # (0 - 1 / (2 beta))²
