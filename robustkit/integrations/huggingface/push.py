"""Exported folders become repositories of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from robustkit.core.imports import failure
from robustkit.core.optional import library
from robustkit.errors import RobustkitError, UsageError
from robustkit.integrations.huggingface.dataset_card import ARRAYS, TABLE
from robustkit.integrations.huggingface.export import CARD, DATASET, MODEL
from robustkit.integrations.huggingface.model_card import EXTRA

_FILES = {MODEL: (CARD, "record.json"), DATASET: (CARD, ARRAYS, TABLE)}


class Upload(NamedTuple):
    """What goes to one repository.

    Attributes:
        kind: "model" or "dataset".
        repo: such as "user/name".
        files: on this machine; each goes to the root of the repository under its own name.
        pull_request: the files are proposed, not committed.
    """

    kind: str
    repo: str
    files: list[Path]
    pull_request: bool = False

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files)


def plan(
    folder: Path, *, model: str | None, dataset: str | None, pull_request: bool = False
) -> list[Upload]:
    """Return what `push` would send of the folder that `export_card` wrote; asks no server.

    The cards are read with huggingface_hub, and the names of repositories checked by its rules.

    Args:
        folder: OUT of `robustkit export-card`.
        model: the repository of the model, or None: it is not pushed.
        dataset: that of the adversarial inputs, likewise.

    Raises:
        UsageError: for a name that is none, a folder without these files, a card whose metadata
            huggingface_hub refuses, and when neither is to be pushed.
    """
    hub: Any = library("huggingface_hub", EXTRA)
    asked = [(kind, repo) for kind, repo in ((MODEL, model), (DATASET, dataset)) if repo]
    if not asked:
        raise UsageError("expected a repository to push to: --model-repo, --dataset-repo or both.")
    uploads = []
    for kind, repo in asked:
        try:
            library("huggingface_hub.utils", EXTRA).validate_repo_id(repo)
        except ValueError as error:  # HFValidationError is one
            raise UsageError(f"--{kind}-repo: expected USER/NAME, got {repo!r}: {error}") from None
        paths = [folder / kind / name for name in _FILES[kind]]
        if missing := [str(path) for path in paths if not path.is_file()]:
            raise UsageError(
                f"{folder}: expected the folder that `robustkit export-card` wrote; missing: "
                f"{', '.join(missing)}. A data set is there where the run stored inputs."
            )
        try:
            (hub.ModelCard if kind == MODEL else hub.DatasetCard).load(paths[0])
        except Exception as error:  # PyYAML's own, ValueError and KeyError alike
            raise UsageError(
                f"{paths[0]}: huggingface_hub refuses the metadata: {failure(error)}. Export the "
                "card again."
            ) from error
        uploads.append(Upload(kind, repo, paths, pull_request))
    return uploads


def push(uploads: list[Upload], *, private: bool = False) -> list[str]:
    """Send them, one commit for each repository; return the addresses of the commits.

    The hub's own check of each card (`validate`) comes before anything is sent. A repository is
    made where there is none. A card that lies in one already is never overwritten: propose the
    change as a pull request. The token is that of `hf auth login` or HF_TOKEN.

    Args:
        private: of a repository that is made; else what is usual for its owner.

    Raises:
        UsageError: when a repository has a card already and no pull request was asked for, or the
            hub refuses a card.
        RobustkitError: when the hub cannot be reached, or refuses.
    """
    hub: Any = library("huggingface_hub", EXTRA)
    api = hub.HfApi(library_name="robustkit")
    try:
        for upload in uploads:
            _check(hub, api, upload)
        return [_send(hub, api, upload, private) for upload in uploads]
    except RobustkitError:
        raise
    except Exception as error:  # of the network in all its layers
        raise RobustkitError(
            f"the hub did not take it: {failure(error)}. Log in with `hf auth login` or HF_TOKEN, "
            "look whether you may write there, and run the same command again."
        ) from error


def _check(hub: Any, api: Any, upload: Upload) -> None:
    card = (hub.ModelCard if upload.kind == MODEL else hub.DatasetCard).load(upload.files[0])
    try:
        card.validate(repo_type=upload.kind)
    except ValueError as error:
        raise UsageError(f"{upload.files[0]}: the hub refuses the card: {error}") from error
    if not upload.pull_request and api.file_exists(upload.repo, CARD, repo_type=upload.kind):
        raise UsageError(
            f"{upload.repo} has a card ({CARD}) already, which is not overwritten. Propose the new "
            "one as a pull request with --pull-request, or choose another repository."
        )


def _send(hub: Any, api: Any, upload: Upload, private: bool) -> str:
    if not upload.pull_request:
        api.create_repo(upload.repo, repo_type=upload.kind, private=private or None, exist_ok=True)
    operations = [
        hub.CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file)
        for file in upload.files
    ]
    sent = api.create_commit(
        upload.repo, operations, commit_message="Adversarial robustness, measured by robustkit",
        repo_type=upload.kind, create_pr=upload.pull_request,
    )  # fmt: skip
    return str(sent.pr_url or sent.commit_url)
