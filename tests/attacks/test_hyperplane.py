"""Nearest points on a plane in a box: against solvers, the reference implementation, hard cases."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog
from torch import Tensor

from robustkit.core.threat import Norm, Threat

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def planes(seed: int, n: int = 40, d: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    """Two points per plane, many coordinates on the edge of the box, some weights zero."""
    g = torch.Generator().manual_seed(seed)
    points = (torch.rand(n, 2, d, generator=g) * 1.8 - 0.4).clamp(0, 1)
    scale = 10 ** (torch.rand(n, 1, generator=g) * 8 - 4)
    normal = torch.randn(n, d, generator=g) * (torch.rand(n, d, generator=g) > 0.2) * scale
    offset = torch.randn(n, 2, generator=g) * scale * (0.1 + 6 * torch.rand(n, 2, generator=g))
    return points, normal, offset


def displace(points: Tensor, normal: Tensor, offset: Tensor, threat: Threat) -> Tensor:
    module = importlib.import_module("robustkit.attacks._hyperplane")
    moves: Tensor = module.displace(points, normal, offset, threat)
    return moves


def shortest(point: Any, normal: Any, offset: float, norm: Norm) -> float:
    """Length of the shortest displacement, by its multiplier (l2) or a linear program."""
    d = len(point)
    low, high = -point, 1 - point
    if norm == "l2":
        # The problem is convex: its solution is clip(-u · normal) for the multiplier u that fits.
        multiplier = brentq(
            lambda u: normal @ np.clip(-u * normal, low, high) + offset, -1e9, 1e9, xtol=1e-14
        )
        return float(np.linalg.norm(np.clip(-multiplier * normal, low, high)))
    # |v_i| <= t, one t for all coordinates (linf) or one each (l1).
    bound = -np.ones((d, 1)) if norm == "linf" else -np.eye(d)
    extra = bound.shape[1]
    result = linprog(
        np.r_[np.zeros(d), np.ones(extra)],
        A_ub=np.block([[np.eye(d), bound], [-np.eye(d), bound]]), b_ub=np.zeros(2 * d),
        A_eq=np.r_[normal, np.zeros(extra)][None], b_eq=[-offset],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * extra],
    )  # fmt: skip
    assert result.status == 0
    assert result.fun is not None
    return float(result.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_displacements_onto_a_plane_are_feasible_and_shortest(norm: Norm) -> None:
    points, normal, offset = planes(0)
    moves = displace(points, normal, offset, Threat(norm, 1.0))
    order = math.inf if norm == "linf" else int(norm[1])
    reached = 0
    for row in range(len(points)):
        w = normal[row].double().numpy() / float(normal[row].abs().max())
        for column in range(2):
            x = points[row, column].double().numpy()
            f = float(offset[row, column] / normal[row].abs().max())
            v = moves[row, column].double().numpy()
            assert ((x + v > -1e-6) & (x + v < 1 + 1e-6)).all()
            assert (v[w == 0] == 0).all()
            corner = np.where(w * f > 0, -x, 1 - x) * (w != 0)
            if abs(w @ corner) < abs(f):
                np.testing.assert_allclose(v, corner, atol=1e-6)
                continue
            reached += 1
            assert abs(w @ v + f) < 1e-5
            assert np.linalg.norm(v, order) <= shortest(x, w, f, norm) * (1 + 1e-5) + 1e-6
    assert 20 < reached < 75


@pytest.mark.parametrize("norm", NORMS)
def test_displacements_equal_those_of_the_reference(norm: Norm) -> None:
    projections = pytest.importorskip("pyautoattack.fab_projections")
    points, normal, offset = planes(1, n=200, d=60)
    normal, offset = normal / normal.abs().amax(1, keepdim=True), offset.sign() * 3
    moves = displace(points, normal, offset, Threat(norm, 1.0))
    for column in range(2):
        at = points[:, column]
        plane = (normal * at).sum(1) - offset[:, column]
        theirs = getattr(projections, f"projection_{norm}")(at, normal, plane)
        torch.testing.assert_close(moves[:, column], theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_displacements_keep_another_box_and_survive_extreme_scales(norm: Norm) -> None:
    points, normal, offset = planes(2)
    threat = Threat(norm, 1.0, lower=-1.0, upper=3.0)
    wide = displace(4 * points - 1, normal, 4 * offset, threat)
    unit = displace(points, normal, offset, Threat(norm, 1.0))
    torch.testing.assert_close(wide, 4 * unit, atol=1e-5, rtol=0)
    for scale in (1e-25, 1e25):
        tiny = displace(points, normal * scale, offset * scale, Threat(norm, 1.0))
        torch.testing.assert_close(tiny, unit, atol=1e-5, rtol=0)
    assert not displace(points, 0 * normal, offset, Threat(norm, 1.0)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_staircase_of_breakpoints_is_solved_to_float_precision(norm: Norm) -> None:
    """Room halves while weight doubles: the hardest case for the search of the level."""
    d = 40
    room = 2.0 ** -torch.arange(d).mul(0.5)
    points, normal = (1 - room).expand(30, 2, d), (1 / room).expand(30, d)
    offset = -(normal * room).sum(1, keepdim=True) * torch.linspace(0.01, 0.999, 30)[:, None]
    moves = displace(points, normal, offset.expand(-1, 2), Threat(norm, 1.0))
    got = (moves.double() * normal.double()[:, None]).sum(2)
    torch.testing.assert_close(got, -offset.double().expand(-1, 2), rtol=2e-5, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rounds_end_where_nothing_moves_and_change_nothing(
    norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some planes meet the box, others lie beyond it: at most half of the rounds, equal to all."""
    module = importlib.import_module("robustkit.attacks._hyperplane")
    points, normal, offset = planes(seed=5)
    offset[:10] *= 1e3
    rounds: list[int] = []
    product = torch.baddbmm

    def counted(*given: Any, **options: Any) -> Tensor:
        rounds.append(1)
        return product(*given, **options)

    monkeypatch.setattr(module.torch, "baddbmm", counted)
    found = displace(points, normal, offset, Threat(norm, 0.1))
    assert 2 <= len(rounds) // 2 <= module._ROUNDS // 2
    monkeypatch.setattr(module, "_ROUNDS", 3 * module._ROUNDS)
    assert torch.equal(displace(points, normal, offset, Threat(norm, 0.1)), found)
    monkeypatch.setattr(module, "_ROUNDS", 2)
    assert not torch.equal(displace(points, normal, offset, Threat(norm, 0.1)), found)
