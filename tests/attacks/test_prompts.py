"""Prompts under attack: embeddings and suffixes, on the toy policy and on what is known of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustkit.core.named import NamedThreat
from robustkit.core.tokens import (
    CENTER,
    RESERVED,
    offsets,
    to_input,
    token_ids,
    with_ids,
    with_offsets,
)
from robustkit.data.open import open_dataset
from robustkit.data.toy_grammar import WORDS, ids_of
from robustkit.errors import UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.language.prompted import Prompted
from robustkit.models.load import load_model
from robustkit.registry import attacks, read_threat
from robustkit.search.functional import attack

DATA = open_dataset("toy-lm")
HARMFUL = [i for i, label in enumerate(DATA.labels.tolist()) if label == 0][:6]


@pytest.fixture(scope="module")
def policy() -> Prompted:
    model = load_model("toy_sft", data=DATA).model
    assert isinstance(model, Prompted)
    return model


def test_ids_survive_as_inputs_and_offsets_stand_beside_them() -> None:
    ids = torch.tensor([[8, 70_000, 2**20 - 1, 0]])
    x = to_input(ids, 3)
    assert torch.equal(token_ids(x), ids)
    assert not offsets(x).any()
    moved = with_offsets(x, torch.full((1, 4, 3), 0.01))
    assert torch.equal(token_ids(moved), ids)
    assert bool((moved >= 0).all() & (moved <= 1).all())


def test_no_offset_leaves_the_logits_as_they_are(policy: Prompted) -> None:
    x, _ = DATA.fetch(HARMFUL)
    narrow = to_input(token_ids(x))
    assert torch.equal(policy(x), policy(narrow))


def test_padding_does_not_matter_and_the_decision_is_by_generation(policy: Prompted) -> None:
    x, y = DATA.fetch(range(12))
    logits = policy(x)
    torch.testing.assert_close(policy(x[:, :, :9]), logits, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits.argmax(1), y)
    prompt = policy.prompt(x)
    written = policy.written(prompt)
    sure = written[:, 0] == ids_of("sure")[0]
    assert torch.equal(sure, y == 1)
    # A likely target that is not written is no success: the surrogate is not the judge.
    affirmed, first = policy.forced(prompt, policy.dialogue.affirmative(prompt.ids))
    assert affirmed.shape == y.shape
    assert torch.equal(first.argmax(1) == ids_of("sure")[0], y == 1)


def test_what_nobody_can_type_is_refused(policy: Prompted) -> None:
    x, _ = DATA.fetch([i for i, label in enumerate(DATA.labels.tolist()) if label == 1][:3])
    assert bool((policy(x).argmax(1) == 1).all())
    for strange in (2, len(WORDS) + 5):
        ids = token_ids(x)
        ids[:, 8] = strange
        assert bool((policy(with_ids(x, ids)).argmax(1) == 0).all())


def test_embedding_attack_stays_in_its_balls_and_gains(policy: Prompted) -> None:
    x, y = DATA.fetch(HARMFUL)
    threat = read_threat("embed:0.2")
    seen: list[Tensor] = []

    def watched(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        logits: Tensor = policy.surrogates()["likelihood"](z)
        return logits

    z = attack(watched, x, y, attacks.build("embedding(iterations=8)"), threat)
    assert bool((offsets(z).norm(dim=2) <= 0.2).all())
    for query in seen:
        if query.shape == x.shape:
            assert bool(threat.contains(query, x).all())
            assert bool((offsets(query)[token_ids(x) == 0] == 0).all())
    with torch.no_grad():
        first = policy.margin(policy.prompt(x))[0]
        best = torch.stack([policy.margin(policy.prompt(q))[0] for q in seen if len(q) == len(x)])
    assert bool((best.amax(0) >= first - 1e-4).all())
    assert float((best.amax(0) - first).mean()) > 0.1


@pytest.mark.parametrize("change", ["id", "padding", "length"])
def test_embedding_threat_refuses_other_changes(change: str) -> None:
    x, _ = DATA.fetch([0])
    threat, z = read_threat("embed:0.05"), x.clone()
    if change == "id":
        z = with_ids(z, token_ids(z) + 1)
    elif change == "padding":
        z[0, 0, 20, 1] = CENTER + 0.01
    else:
        z[0, 0, 2, 1] = CENTER + 0.06
    assert bool(threat.contains(x, x).all())
    assert not bool(threat.contains(z, x).any())


def test_suffix_threat_counts_what_was_added_behind() -> None:
    x, _ = DATA.fetch([0])
    threat, word = read_threat("suffix:2"), ids_of("class")[0]

    def told(*pairs: tuple[int, int]) -> float:
        ids = token_ids(x)
        for place, token in pairs:
            ids[0, place] = token
        return float(threat.distance(with_ids(x, ids), x))

    assert told() == 0
    assert told((8, word), (9, word)) == 2
    assert told((9, word)) == float("inf")  # a gap
    assert told((8, 2)) == float("inf")  # a control token
    assert told((3, word)) == float("inf")  # the prompt itself


def test_all_suffixes_of_one_token_are_tried_and_gcg_finds_no_more(policy: Prompted) -> None:
    x, y = DATA.fetch(HARMFUL)
    threat = read_threat("suffix:1")
    every = torch.arange(RESERVED, len(WORDS))
    truth = []
    for row in x:
        ids = token_ids(row[None]).repeat(len(every), 1)
        ids[:, 8] = every
        truth.append(bool((policy(with_ids(row.repeat(len(every), 1, 1, 1), ids)) * 1)
                          .argmax(1).any()))  # fmt: skip
    found = {}
    for spec in ("suffixes", "gcg(rounds=3)"):
        z = attack(policy, x, y, attacks.build(spec), threat)
        assert bool(threat.contains(z, x).all())
        found[spec] = (policy(z).argmax(1) != y).tolist()
    assert found["suffixes"] == truth
    assert all(b or not a for a, b in zip(found["gcg(rounds=3)"], truth, strict=True))


def test_verdicts_do_not_depend_on_the_size_of_a_batch() -> None:
    points = [*HARMFUL[:3], *[i for i in range(12) if DATA.labels[i] == 1][:3]]
    records = [
        evaluate("toy_sft", "toy-lm", "suffix:3", attacks=["gcg(rounds=2)"], points=points,
                 batch_size=size)
        for size in (2, 6)
    ]  # fmt: skip
    assert records[0].points.status == records[1].points.status
    assert set(records[0].points.status[3:]) <= {"robust", "broken"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embed:0", "expected embed:0.05"),
        ("embed:x", "expected embed:0.05"),
        ("suffix:0", "expected suffix:20"),
        ("suffix:two", "expected suffix:20"),
    ],
)
def test_threats_say_what_they_expect(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_threat(text)


@pytest.mark.parametrize("text", ["embed:0.05", "suffix:60"])
def test_threats_refuse_other_data(text: str) -> None:
    threat = read_threat(text)
    assert isinstance(threat, NamedThreat)
    with pytest.raises(UsageError, match="toy-lm"):
        threat.check((3, 32, 32), None)
