"""The threat model where none is named: the usual one, or that of the weights that are shipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkit.cli.evaluate import threats
from robustkit.cli.evaluate.request import Request
from robustkit.core.threat import Threat
from robustkit.data.open import open_dataset
from robustkit.models.load import bundled, load_model


@pytest.mark.parametrize(
    ("shipped", "models", "eps"),
    [
        (["linf:0.00784314", "linf:0.0313725"], (), 8 / 255),
        (["linf:0.00784314"], (), 2 / 255),
        (["linf:0.00784314"], ("mine.py:net",), 8 / 255),
        ([], (), 8 / 255),
    ],
)
def test_a_first_look_takes_an_eps_that_weights_were_made_for(
    shipped: list[str], models: tuple[str, ...], eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threats, "threats_of_bundled", lambda _: shipped)
    request = Request(models=models, data="bundled-color")
    assert threats.threat_of(request, open_dataset("bundled-color")) == Threat("linf", eps)
    asked = Request(models=models, data="bundled-color", threat="l2:0.5")
    assert threats.threat_of(asked, open_dataset("bundled-color")) == Threat("l2", 0.5)


def test_the_grey_images_keep_theirs() -> None:
    assert threats.threat_of(Request(), open_dataset("bundled")) == Threat("linf", 0.1)
    assert "linf:0.1" in threats.threats_of_bundled(open_dataset("bundled"))


def test_color_images_find_the_weights_of_their_family() -> None:
    data = open_dataset("bundled-color")
    names = bundled(data, "linf")
    assert any(name.startswith("mtl_ibp") for name in names)
    subject = load_model("mtl_ibp", data=data)
    x, y = data.fetch(np.arange(len(data)))
    with torch.no_grad():
        right = (subject.model(x).argmax(1) == y).float().mean()
    # Its card says 0.583 on 5,000 validation images: three standard errors of 200 points.
    assert abs(float(right) - 0.583) < 3 * (0.583 * 0.417 / 200) ** 0.5
