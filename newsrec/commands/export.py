"""The command ``export``: write a model to a folder that runs without PyTorch."""

import argparse
import shlex
from pathlib import Path

from newsrec.commands.common import add_data_root, add_output
from newsrec.console import say
from newsrec.errors import HubError, UserError
from newsrec.export.export import export
from newsrec.hub import checked_id
from newsrec.serving import manifest
from newsrec.serving.publish import push
from newsrec.serving.vectors import TYPES

FILES = {
    manifest.USER_ENCODER: "vectors of clicked news to a user vector",
    manifest.NEWS_ENCODER: "a news item's tokens to its vector",
    manifest.PROGRAM: "the user encoder as torch.export saves it",
    manifest.WEIGHTS: "the whole model, for PyTorch",
    manifest.CONFIG: "what it takes to build the model",
    manifest.TOKENIZER: "the PLM's",
    manifest.VECTORS: "the vector of every news item",
    manifest.SCALES: "the scale of every int8 vector",
    manifest.NEWS: "which news item a row is",
    manifest.CARD: "the card: what this is, and how good",
    manifest.MANIFEST: "shapes, hashes, origin",
}
"""Description that the command prints for each file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    use = "checkpoint that fit wrote: runs/NAME/.../best.ckpt"
    parser.add_argument("--ckpt_path", required=True, help=use)
    add_output(parser)
    use = "also export the vectors of this folder's news, and check the scores of dev"
    add_data_root(parser, use, required=False)
    use = "also export the news encoder, for news published later; it is as large as the PLM"
    parser.add_argument("--news_encoder", type=bool, default=True, help=use)
    use = "type of the news vectors in the folder: float16 halves the file; int8, with a scale for "
    use += "each news item, quarters it; an error if the AUC on dev falls by more than .001"
    parser.add_argument("--vectors", choices=TYPES, default=TYPES[0], help=use)
    use = (
        "round the weights of the news encoder to int8: a quarter of the size, faster; an error as "
    )
    use += "for --vectors, or if the vectors differ too much"
    parser.add_argument("--quantize", action="store_true", help=use)
    use = "also publish the folder on the Hugging Face hub as this repository, such as me/news; "
    use += "the news of --data.root is not published"
    parser.add_argument("--push", metavar="REPO", help=use)
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(args: argparse.Namespace) -> None:
    """Export the model and list the files."""
    output = Path(args.output)
    if args.push is not None:
        checked_id(args.push)
    elif args.private:
        raise UserError(
            "--private is for --push REPO, but --push is not given. Leave --private out."
        )
    root = args.data.root
    export(args.ckpt_path, output, root, args.news_encoder, args.vectors, args.quantize)
    say(f"Exported to {output}:")
    for path in sorted(output.iterdir()):
        size = path.stat().st_size / 1024
        say(f"  {path.name:<20} {size:10,.0f} KiB  {FILES.get(path.name, '')}")
    if args.data.root is None:
        say("No news vectors were exported: add --data.root ROOT to export those of a folder.")
    else:
        words = ["serve", str(output), "--data.root", args.data.root]
        say(f"Next, for recommendations in a browser:\n  python -m newsrec {shlex.join(words)}")
    if args.push is not None:
        try:
            say(f"Published: {push(output, args.push, args.private or None)}")
        except HubError as error:
            raise HubError(
                f"{error} The export is in {output}: newsrec.Recommender.load({str(output)!r})"
                f".push_to_hub({args.push!r}) publishes it later."
            ) from error
