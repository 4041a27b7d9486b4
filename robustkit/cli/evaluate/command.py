"""`robustkit evaluate`: its options. What it does is in `robustkit.cli.evaluate.run`."""

from __future__ import annotations

from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.program import debug, debugging
from robustkit.cli.supervisor import Supervised


@click.command("evaluate", cls=Supervised)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="TEXT",
    help="What tables call the model; once for each MODEL, in their order.",
)
@click.option(
    "--data",
    default="bundled",
    show_default=True,
    metavar="NAME|npz:PATH|folder:PATH|hf-data:FOLDER|module:function",
    help="Inputs and labels.",
)
@options.box
@options.data_root
@click.option(
    "--threat",
    metavar="linf:8/255|l2:0.5|l1:12|l0:10",
    help="Norm and eps in input units; by default the usual one of the data set, or without MODEL "
    "that of the bundled weights, if none of them was made for the usual one.",
)
@options.criterion
@click.option(
    "--eps-grid",
    callback=options.numbers,
    metavar="2/255,4/255,8/255",
    help="The robust accuracy at each of these eps, in one run; --threat then names the norm.",
)
@click.option(
    "--minimum-norm",
    is_flag=True,
    help="Seek the nearest adversarial input of every point; --threat may name the norm alone.",
)
@click.option(
    "--suite",
    metavar="NAME",
    help="A line-up of attacks; 'quick' by default, 'minimum_norm' with --minimum-norm.",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="SPEC",
    help='An attack instead of a suite, such as "apgd(loss=dlr, steps=50)"; repeatable.',
)
@click.option(
    "--certify",
    type=options.Certificate(
        ["none", "quick", "auto", "ibp", "crown", "alpha-crown", "complete", "smoothing"]
    ),
    help="Prove points robust before the attacks; those are not attacked. quick: interval bounds "
    "(ibp), where they apply. complete: what bounds and attacks leave goes through branch and "
    "bound; auto does the same where it can. By default quick, then auto for 15% of the time that "
    "the run has taken. Formulas that a model brings with it go by their own names; auto and quick "
    "take the first.",
)
@click.option(
    "--certify-time",
    callback=options.duration,
    metavar="30s|5m|1h",
    help="Of branch and bound, for a point; 10 with auto or complete. What is open then is "
    "undecided.",
)
@click.option(
    "--certify-nodes",
    type=click.IntRange(min=1),
    metavar="N",
    help="So many subdomains for a point instead: a budget that does not depend on the machine.",
)
@click.option(
    "--attack-certified", is_flag=True, help="Attack certified points too, to check the proof."
)
@click.option(
    "--n",
    type=click.IntRange(min=1),
    metavar="N",
    help="Points: a seeded sample of the data; all by default, 200 where no MODEL is named.",
)
@click.option(
    "--sample",
    type=click.Choice(["proportional", "balanced"]),
    default="proportional",
    show_default=True,
    help="Of --n points, each class has its share of the data, or all have the same.",
)
@options.seed
@options.device
@click.option(
    "--distributed",
    metavar="ray[:ADDRESS]",
    help="On a Ray cluster, a worker per GPU, or per CPU where there are none.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="So many processes, of this machine or of the cluster; each takes a model, where there "
    "are enough on one device, else all work on one after the other.",
)
@click.option(
    "--batch-size",
    callback=options.batch_size,
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Inputs that go through the model at once.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of searches; verdicts are always float32. auto: float16 on a GPU, bfloat16 on a CPU with "
    "matrix units where it pays.",
)
@click.option(
    "--layout",
    type=click.Choice(["auto", "contiguous", "channels_last"]),
    default="auto",
    show_default=True,
    help="Of images and convolutions in searches.",
)
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile the model for searches (torch.compile)."
)
@click.option(
    "--replay",
    type=options.FOLDER,
    metavar="DIR",
    help="Try what an earlier run on the same data has found first; one pass each.",
)
@options.max_time
@options.max_forwards
@click.option("--out", type=options.OUTPUT_FOLDER, metavar="DIR", help="Folder of the run.")
@options.fresh
@click.option(
    "--save-adversarial/--no-save-adversarial",
    default=None,
    help="Keep the adversarial inputs; by default unless they are large.",
)
@click.option(
    "--save-proofs",
    is_flag=True,
    help="Keep a proof of every certified point, which robustkit verify-proof checks again.",
)
@click.option(
    "--weights", type=options.FILE, metavar="FILE", help="State dict: .safetensors, .pt or .pth."
)
@click.option(
    "--mean",
    callback=options.numbers,
    metavar="A,B,C",
    help="Subtracted from each channel, inside the model; one number for all, or one for each.",
)
@click.option("--std", callback=options.numbers, metavar="A,B,C", help="Divided by, likewise.")
@options.trust_code
@options.threads
@options.as_json
@options.quiet
@debug
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Attack models and print the leaderboard.

    MODEL is a registered defense with options (undefended, "pgd_at(eps=0.1)"), or
    package.module:attr or path/to/file.py:attr: an nn.Module, or a function without arguments that
    returns one; or a model of another source: robustbench:cifar10/Linf/NAME, timm:NAME,
    torchvision:NAME, hf:NAME_OR_FOLDER, hub:FOLDER:ENTRY, onnx:FILE, export:FILE. A MODEL may end
    in @FILE, its weights, so that several checkpoints go into one command. Without MODEL, every
    bundled model for the data is evaluated.

    The same command again resumes. Exit codes: 0 done, 2 the request cannot be carried out as it
    stands, 3 a model could not be finished.
    """
    from robustkit.cli.evaluate.request import Request
    from robustkit.cli.evaluate.run import run
    from robustkit.models.trust import trusting
    from robustkit.models.tuning import Tuning

    tuning = Tuning(*(given.pop(name) for name in ("precision", "layout", "compiled")))
    with trusting(given.pop("trust_code")):
        return run(Request(**given, tuning=tuning), debug=debugging(ctx))
