"""Cards and uploads for the Hugging Face Hub: read back by huggingface_hub, sent to a stand-in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
from click.testing import CliRunner, Result

from robustkit import Record, load_model, open_dataset
from robustkit.cli.program import program as main
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import EvidenceAltered, RobustkitError, UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.integrations.huggingface.export import export_card
from robustkit.integrations.huggingface.model_card import model_card, results
from robustkit.integrations.huggingface.push import Upload, plan, push
from robustkit.record.record import load, save
from robustkit.record.schema import WeightsInfo
from robustkit.verify.flags import Flag

hub: Any = pytest.importorskip("huggingface_hub")


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with broken points, its inputs in a ledger."""
    folder = tmp_path_factory.mktemp("run") / "undefended"
    model = load_model("undefended", data=open_dataset("bundled"))
    evaluate(
        model.model, "bundled", "linf:0.1", name="undefended", attacks=["fgsm"], points=range(24),
        folder=folder, save_adversarial=True, progress=False, device="cpu",
    )  # fmt: skip
    return folder


class TestModelCard:
    def test_huggingface_hub_reads_the_accuracies_back(
        self, make_record: Callable[..., Record]
    ) -> None:
        record = make_record("net", "crrbbm")
        card = hub.ModelCard(model_card(record, license="mit", inputs="me/inputs"))
        assert card.data.eval_results == results(record)
        found = {one.metric_type: one for one in card.data.eval_results}
        assert found["accuracy"].metric_value == record.clean
        assert found["robust_accuracy"].metric_value == record.robust
        assert found["certified_accuracy"].metric_value == record.certified
        assert found["robust_accuracy"].metric_name == "Robust accuracy (linf, eps = 0.1)"
        assert found["robust_accuracy"].metric_args["bound"] == "upper"
        assert (card.data.license, card.data.datasets) == ("mit", ["me/inputs"])
        (entry,) = card.data.to_dict()["model-index"]
        assert entry["name"] == "net"
        assert {one["task"]["type"] for one in entry["results"]} == {"image-classification"}

    def test_no_certificate_is_no_zero(self, make_record: Callable[..., Record]) -> None:
        kinds = {one.metric_type for one in results(make_record("net", "rrb"))}
        assert kinds == {"accuracy", "robust_accuracy"}

    def test_a_verdict_that_is_not_reliable_stands_in_the_name_and_the_text(
        self, make_record: Callable[..., Record]
    ) -> None:
        masked = Flag(name="black_box", message="Gradients are <masked>.")
        record = make_record("net", "rrrb", flags=[masked])
        card = hub.ModelCard(model_card(record))
        (robust,) = [r for r in card.data.eval_results if r.metric_type == "robust_accuracy"]
        assert record.reliability in robust.metric_name
        assert robust.metric_args["flags"] == ["black_box"]
        assert f"Verdict: **{record.reliability}**" in card.text
        assert "Gradients are &lt;masked&gt;." in card.text

    def test_names_cannot_add_metadata_or_tell_folders(
        self, make_record: Callable[..., Record]
    ) -> None:
        own = WeightsInfo(digest="00", parameters=1)
        evil = "/home/someone/net.py:make\n---\nlicense: other\n---\n# <script>"
        card = hub.ModelCard(model_card(make_record(evil, "rrb", weights=own)))
        assert card.data.license is None
        assert "<script>" not in card.text and "someone" not in card.content
        assert "\n# " not in card.text.lstrip()[2:].split("\n## ")[0]


class TestExport:
    def test_inputs_are_those_of_the_ledger_and_evaluate_again(
        self, run: Path, tmp_path: Path
    ) -> None:
        result = ask("export-card", run, "--out", tmp_path, "--data-license", "mit",
                     "--dataset-repo", "me/inputs")  # fmt: skip
        assert result.exit_code == 0, result.output
        record = load(run / "record.json")
        broken = [p for p, s in zip(record.points.index, record.points.status, strict=True)
                  if s == "broken"]  # fmt: skip
        assert broken and f"({len(broken)} adversarial inputs)" in result.stdout
        data: Dataset = open_dataset(f"npz:{tmp_path / 'dataset' / 'adversarial.npz'}")
        x, y = data.fetch(range(len(data)))
        clean, labels = open_dataset("bundled").fetch(broken)
        assert y.tolist() == labels.tolist() and data.classes == 10
        assert bool(Threat.parse("linf:0.1").contains(x, clean).all())
        lines = (tmp_path / "dataset" / "points.csv").read_text().splitlines()
        assert [int(line.split(",")[1]) for line in lines[1:]] == broken
        card = hub.DatasetCard.load(tmp_path / "dataset" / "README.md")
        assert (card.data.license, card.data.task_categories) == ("mit", ["image-classification"])
        assert card.data.to_dict()["configs"][0]["data_files"] == "points.csv"
        assert load(tmp_path / "model" / "record.json") == record
        assert hub.ModelCard.load(tmp_path / "model" / "README.md").data.datasets == ["me/inputs"]

    def test_the_same_run_gives_the_same_files(self, run: Path, tmp_path: Path) -> None:
        export_card(run, tmp_path / "a")
        export_card(run / "record.json", tmp_path / "b")
        for file in (tmp_path / "a").rglob("*.*"):
            again = tmp_path / "b" / file.relative_to(tmp_path / "a")
            assert file.read_bytes() == again.read_bytes()

    def test_without_a_ledger_there_is_no_data_set_and_an_old_one_goes(
        self, run: Path, tmp_path: Path, make_record: Callable[..., Record]
    ) -> None:
        export_card(run, tmp_path / "out")
        save(make_record("net", "rrb"), tmp_path / "record.json")
        result = ask("export-card", tmp_path / "record.json", "--out", tmp_path / "out",
                     "--dataset-repo", "me/inputs")  # fmt: skip
        assert result.exit_code == 0 and "no data set card" in result.stdout
        assert not list((tmp_path / "out" / "dataset").iterdir())
        assert "me/inputs" not in (tmp_path / "out" / "model" / "README.md").read_text()

    def test_altered_evidence_is_refused(self, run: Path, tmp_path: Path) -> None:
        raw = json.loads((run / "record.json").read_text())
        raw["points"]["status"] = ["robust"] * len(raw["points"]["status"])
        (tmp_path / "record.json").write_text(json.dumps(raw))
        with pytest.raises((EvidenceAltered, UsageError)):
            export_card(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_absence_of_the_library_names_the_extra(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        result = ask("export-card", run, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "robustkit-eval[hub]" in result.stderr


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    export_card(run, tmp_path)
    return tmp_path


class TestPush:
    def test_a_dry_run_asks_no_server(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "HfApi", None)
        result = ask("push", folder, "--model-repo", "me/net", "--dataset-repo", "me/inputs",
                     "--dry-run")  # fmt: skip
        assert result.exit_code == 0, result.output
        size = sum(file.stat().st_size for file in (folder / "model").iterdir())
        assert f"a commit to model me/net: {size:,} bytes" in result.stdout
        assert "adversarial.npz" in result.stdout and "nothing was sent" in result.stdout

    @pytest.mark.parametrize(
        ("repos", "reason"),
        [
            ((None, None), "--model-repo"),
            (("a b", None), "USER/NAME"),
            (("me/--x", None), "USER/NAME"),
        ],
    )
    def test_a_request_that_cannot_be_met(
        self, folder: Path, repos: tuple[str | None, str | None], reason: str
    ) -> None:
        with pytest.raises(UsageError, match=reason):
            plan(folder, model=repos[0], dataset=repos[1])

    def test_a_folder_without_cards_and_a_broken_card(self, folder: Path) -> None:
        (folder / "dataset" / "points.csv").unlink()
        with pytest.raises(UsageError, match=r"missing: .*points\.csv"):
            plan(folder, model=None, dataset="me/inputs")
        (folder / "model" / "README.md").write_text("---\nmodel-index: [{name: 3}]\n---\n")
        with pytest.raises(UsageError, match="refuses the metadata"):
            plan(folder, model="me/net", dataset=None)

    def test_what_is_sent(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        api, checked = stand_in(monkeypatch, exists=False)
        uploads = plan(folder, model="me/net", dataset="me/inputs")
        assert push(uploads, private=True) == ["https://hub/commit"] * 2
        assert checked == ["model", "dataset"]
        made = [(call.args[0], call.kwargs) for call in api.create_repo.call_args_list]
        options = {"private": True, "exist_ok": True}
        assert made == [("me/net", {"repo_type": "model", **options}),
                        ("me/inputs", {"repo_type": "dataset", **options})]  # fmt: skip
        sent = [[op.path_in_repo for op in call.args[1]]
                for call in api.create_commit.call_args_list]  # fmt: skip
        assert sent == [["README.md", "record.json"],
                        ["README.md", "adversarial.npz", "points.csv"]]  # fmt: skip

    def test_a_card_that_is_there_is_not_overwritten(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        api, _ = stand_in(monkeypatch, exists=True)
        with pytest.raises(UsageError, match="--pull-request"):
            push(plan(folder, model="me/net", dataset=None))
        assert not api.create_commit.called and not api.create_repo.called
        push(plan(folder, model="me/net", dataset=None, pull_request=True))
        assert api.create_commit.call_args.kwargs["create_pr"] and not api.create_repo.called

    def test_a_hub_that_cannot_be_reached_is_exit_code_3(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        api, _ = stand_in(monkeypatch, exists=False)
        api.create_commit.side_effect = OSError("no route")
        with pytest.raises(RobustkitError, match="no route") as caught:
            push(plan(folder, model="me/net", dataset=None))
        assert caught.value.exit_code == 3

    def test_bytes_of_an_upload(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(np.zeros(5, dtype=np.uint8).tobytes())
        assert Upload("model", "me/net", [tmp_path / "a"]).bytes == 5


def stand_in(monkeypatch: pytest.MonkeyPatch, *, exists: bool) -> tuple[Any, list[str]]:
    """Put an HfApi with the signatures of the real one in its place; no request leaves."""
    api = create_autospec(hub.HfApi, instance=True)
    api.file_exists.return_value = exists
    api.create_commit.return_value.pr_url = None
    api.create_commit.return_value.commit_url = "https://hub/commit"
    checked: list[str] = []
    monkeypatch.setattr(hub, "HfApi", lambda **_: api)
    monkeypatch.setattr(
        hub.repocard.RepoCard, "validate", lambda _, repo_type: checked.append(repo_type)
    )
    return api, checked
