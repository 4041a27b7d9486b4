"""The pytest plugin: the marker `robustness` and the fixture of the same name.

    @pytest.mark.robustness(threat="linf:8/255", at_least=0.45, suite="quick", data="cifar10")
    def test_model(robustness):
        robustness(make_model())

    def test_gate(robustness):
        robustness.assert_not_regressed(make_model(), "robustkit-baseline", tolerance=0.01)

Nothing heavy is imported before a test uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from robustkit.gate.verdict import GateVerdict
    from robustkit.record.record import Record

_OPTIONS = (
    *("at_least", "threat", "data", "suite", "attacks", "n", "seed", "confidence"),
    *("max_time", "device", "name", "trust_code"),
)


class Robustness:
    """What the fixture hands out: call it with a model.

    Args:
        options: those of the test's marker.
        folder: where evidence is kept for as long as pytest keeps temporary folders.
    """

    def __init__(self, options: dict[str, Any], folder: Path, node: pytest.Item) -> None:
        self.options, self.runs = options, 0
        self._folder, self._node = folder, node

    def __call__(self, model: Any, **options: Any) -> Record:
        """Evaluate a model as the marker says, `options` going first; fail below `at_least`."""
        __tracebackhide__ = True
        from robustkit.integrations.testing import assert_robust

        asked = {"at_least": 0.0, **self.options, **options}
        _refuse_unknown(asked)
        record = assert_robust(model, folder=self._next(), **asked)
        self._node.user_properties.append(("robust", f"{record.robust:.4f} of {record.n}"))
        return record

    def assert_not_regressed(self, model: Any, baseline: Path | str, **options: Any) -> GateVerdict:
        """Fail when the model is less robust than its baseline; see `integrations/testing.py`."""
        __tracebackhide__ = True
        from robustkit.integrations.testing import assert_not_regressed

        verdict = assert_not_regressed(model, baseline, folder=self._next(), **options)
        self._node.user_properties.append(("robustkit", verdict.answer))
        return verdict

    def _next(self) -> Path:
        self.runs += 1
        return self._folder / f"run{self.runs}"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "robustness(threat, at_least, suite, data, ...): what the fixture `robustness` asks of the "
        "models that the test hands to it",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a marked test that evaluates nothing: it would pass whatever the model is."""
    marked = item.get_closest_marker("robustness") is not None
    if marked and "robustness" not in getattr(item, "fixturenames", ()):
        pytest.fail(
            f"{item.name} is marked robustness but does not take the fixture `robustness`: nothing "
            "would be evaluated. Write def test(robustness): robustness(model)",
            pytrace=False,
        )


@pytest.fixture
def robustness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Robustness]:
    """Evaluate models under the terms of the marker `robustness`."""
    marker = request.node.get_closest_marker("robustness")
    options = dict(marker.kwargs) if marker else {}
    if marker and marker.args:
        pytest.fail("the marker robustness takes keywords: robustness(at_least=0.45, ...)",
                    pytrace=False)  # fmt: skip
    _refuse_unknown(options)
    found = Robustness(options, tmp_path, request.node)
    yield found
    if marker and not found.runs:
        pytest.fail(
            f"{request.node.name} is marked robustness but evaluated nothing: call the fixture "
            "with a model, robustness(model)",
            pytrace=False,
        )


def _refuse_unknown(options: dict[str, Any]) -> None:
    __tracebackhide__ = True
    from robustkit.errors import unknown

    for option in options:
        if option not in _OPTIONS:
            pytest.fail(str(unknown("option of robustness", option, _OPTIONS)), pytrace=False)
