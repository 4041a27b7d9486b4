"""`robustkit export-card` and `robustkit push`: a record on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from robustkit.cli import options
from robustkit.cli.console import result
from robustkit.cli.program import debug


@click.command("export-card", short_help="A record as cards for the Hugging Face Hub.")
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--out", type=options.OUTPUT_FOLDER, required=True, metavar="DIR", help="Where to.")
@click.option("--name", metavar="NAME", help="Of the model on the cards; by default the record's.")
@click.option("--license", metavar="ID", help="Of the model, as the hub calls it, such as mit.")
@click.option("--data-license", metavar="ID", help="Of the clean images.")
@click.option(
    "--dataset-repo", metavar="USER/NAME", help="Where the inputs will lie; the card links there."
)
@options.quiet
@debug
def export(
    record: Path,
    out: Path,
    name: str | None,
    license: str | None,
    data_license: str | None,
    dataset_repo: str | None,
    quiet: bool,
) -> None:
    """Write DIR/model, a model card with `model-index` metadata and RECORD itself.

    Where the ledger beside RECORD holds adversarial inputs, DIR/dataset gets them as arrays, with a
    table and a data set card. No model is loaded.
    """
    from robustkit.integrations.huggingface.export import export_card

    found = export_card(
        record, out, name=name, license=license, data_license=data_license,
        dataset_repo=dataset_repo,
    )  # fmt: skip
    if quiet:
        return
    result(f"model card: {found.model}")
    if found.dataset is None:
        result("no data set card: no adversarial inputs lie beside the record")
    else:
        result(f"data set card: {found.dataset} ({found.inputs} adversarial inputs)")


@click.command("push", short_help="Exported cards to the Hugging Face Hub.")
@click.argument("folder", type=options.FOLDER)
@click.option("--model-repo", metavar="USER/NAME", help="Where FOLDER/model goes.")
@click.option("--dataset-repo", metavar="USER/NAME", help="Where FOLDER/dataset goes.")
@click.option("--private", is_flag=True, help="Of a repository that is made.")
@click.option("--pull-request", is_flag=True, help="Propose the files to a repository that exists.")
@click.option("--dry-run", is_flag=True, help="Check all of it here, say what would go, send none.")
@options.quiet
@debug
def push(
    folder: Path,
    model_repo: str | None,
    dataset_repo: str | None,
    private: bool,
    pull_request: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Send what `robustkit export-card` wrote to FOLDER, through huggingface_hub.

    A card that a repository has already is never overwritten: see --pull-request. Log in first:
    `hf auth login`, or the variable HF_TOKEN.
    """
    from robustkit.integrations.huggingface import push as hub

    uploads = hub.plan(folder, model=model_repo, dataset=dataset_repo, pull_request=pull_request)
    if dry_run:
        for upload in uploads:
            how = "a pull request to" if pull_request else "a commit to"
            result(f"{how} {upload.kind} {upload.repo}: {upload.bytes:,} bytes")
            for file in upload.files:
                result(f"  {file.name}: {file}")
        result("nothing was sent (--dry-run)")
        return
    for address in hub.push(uploads, private=private):
        if not quiet:
            result(address)
