"""Rows of tables as a threat model: rules for each feature, and constraints between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from robustkit.core.table import Table
from robustkit.core.tabular import TabularThreat
from robustkit.core.text import number
from robustkit.core.threat import Threat
from robustkit.data.ranges import Ranges
from robustkit.data.table import open_table
from robustkit.errors import UsageError
from robustkit.registry import suites, threats


@threats.register("tabular", cites="arXiv:2406.00775", examples=("0.05",))
@dataclass(frozen=True)
class Tabular(TabularThreat):
    """Rows of a table that obey its rules: `tabular:0.05`, or `tabular:rules.npz@0.05`.

    Simonetto et al. 2024, section 3: bounds, kinds and mutability of features, one-hot groups and
    linear constraints, which are arrays in an npz: that of the data, or one that is named, so that
    one file holds rows and rules and no other format is needed. Every number may move by 0.05 of
    its radius, `feature_eps`, by default the whole of its range; a category may become any other of
    its group. The digest of the rules is in the record. Differs from the paper: a radius for every
    feature, in linf; constraints are linear.
    """

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `tabular:`."""
        file, _, share = text.rpartition("@")
        try:
            eps = number(share)
        except ValueError:
            eps = 0.0
        if not 0 < eps < float("inf"):
            raise UsageError(
                "expected tabular:0.05 or tabular:rules.npz@0.05, the share of its radius that "
                f"every feature may move, got tabular:{text}"
            )
        if file:
            open_table(file)
        return cls(f"tabular:{text}", eps)  # type: ignore[arg-type]

    def beside(self, data: Any) -> Self:
        """Return the threat model with the rules of the file of `data`, where it names none.

        Raises:
            UsageError: for data without a file.
        """
        source = str(getattr(data, "source", ""))
        if self._file:
            self._refuse_ranges(data)
            return self
        if not source.endswith(".npz") or not Path(source).is_file():
            raise UsageError(
                f"{self} takes its rules from the npz of the data, and {data.name} has none: name "
                f"the file that holds them, tabular:rules.npz@{self._share}."
            )
        open_table(source)
        return replace(self, norm=f"tabular:{source}@{self._share}")  # type: ignore[arg-type]

    def _refuse_ranges(self, data: Any) -> None:
        known: Ranges | None = getattr(data, "ranges", None)
        if known is None:  # the rows are shares of their ranges already
            return
        for key, own in (("lower", self.table.lower), ("upper", self.table.upper)):
            if not np.array_equal(getattr(known, key).reshape(-1), own.numpy()):
                raise UsageError(
                    f"{self}: expected the {key} of {data.name}, by which its rows are scaled, got "
                    "others. Give both files the same."
                )

    @property
    def _file(self) -> str:
        return self.norm.partition(":")[2].rpartition("@")[0]

    @property
    def _share(self) -> str:
        return self.norm.partition(":")[2].rpartition("@")[2]

    @property
    def table(self) -> Table:
        """The rules, read from the file.

        Raises:
            UsageError: where no file is named.
        """
        if not self._file:
            raise UsageError(
                f"{self} has no rules yet: name the file that holds them, "
                f"tabular:rules.npz@{self._share}."
            )
        return open_table(self._file)

    def digest(self) -> str:
        """Of the rules: other rules are another threat model."""
        return self.table.digest()


@suites.register("tabular", cites="arXiv:2406.00775")
@dataclass(frozen=True)
class TabularSuite:
    """CAPGD from several starts, programs on its gradients, all rows of small sets, random search.

    After CAA (Simonetto et al. 2024), which runs CAPGD and then a search by scores on what is left.
    """

    tabular = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """On the model itself, and through each surrogate that it declares.

        Raises:
            UsageError: for another threat model.
        """
        if not isinstance(threat, TabularThreat):
            raise UsageError(f"the suite tabular supports tabular:0.05, got {threat.norm}. "
                             "Use quick.")  # fmt: skip
        through = [f"capgd(loss=margin, surrogate={name})" for name in surrogates]
        aimed = "capgd(loss=targeted_margin, targets=3, random_start=true, restarts=2)"
        return ["row_program", "capgd", aimed, *self.without_gradients(threat), *through]

    def without_gradients(self, threat: Threat) -> Sequence[str]:
        """The attacks that see scores alone."""
        return ["all_rows", "row_search"]
