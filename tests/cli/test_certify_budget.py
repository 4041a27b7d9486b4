"""--certify-time and --certify-nodes become part of the certificate's name."""

from __future__ import annotations

import pytest

from robustkit.certify.complete.verifier import Effort
from robustkit.cli.evaluate.request import Request
from robustkit.cli.evaluate.run_folder import certificate
from robustkit.errors import UsageError


def test_the_budget_joins_the_name() -> None:
    assert certificate(Request(certify="complete")) == "complete"
    text = certificate(Request(certify="auto", certify_time=60.0, certify_nodes=1_000_000))
    assert text is not None
    assert Effort.parse(text).text == "auto(nodes=1000000, seconds=60)"


def test_a_budget_without_branch_and_bound_is_refused() -> None:
    for given in ({"certify": "none"}, {"certify": "ibp"}, {"eps_grid": (0.1, 0.2)}):
        with pytest.raises(UsageError, match="give --certify complete"):
            certificate(Request(**given, certify_nodes=5))


def test_a_budget_alone_is_that_of_auto() -> None:
    assert certificate(Request(certify_time=2.0)) == "auto(seconds=2)"
