"""The command ``convert-checkpoint``: make one file of a checkpoint in a folder of parts."""

import argparse
from pathlib import Path

from newsrec.console import counted, say
from newsrec.errors import UserError
from newsrec.files import require_writable
from newsrec.training.checkpoint.read import read_checkpoint
from newsrec.training.checkpoint.saving import write_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    use = "folder best.ckpt or last.ckpt of a run with --trainer.strategy fsdp2_in_parts"
    parser.add_argument("folder", metavar="FOLDER", help=use)
    parser.add_argument("--output", required=True, help="file to write, such as best-whole.ckpt")


def run(args: argparse.Namespace) -> None:
    """Write the file, which evaluate, export and fit read."""
    folder, output = Path(args.folder), Path(args.output)
    if folder.is_file():
        raise UserError(f"{folder} is one file already. Give it to evaluate, export or fit.")
    if output.exists():
        raise UserError(f"--output {output} exists. Remove it, or choose another name.")
    if folder.resolve() in output.resolve().parents:
        raise UserError(
            f"--output {output} is in the folder {folder}, which a resumed run replaces. Choose "
            "another place."
        )
    require_writable(output)
    checkpoint = read_checkpoint(args.folder, in_parts=True, option="FOLDER")
    cause = write_checkpoint(checkpoint, output)
    if cause is not None:
        raise UserError(
            f"{output} could not be written ({cause}). Free some space there, or choose another "
            "--output."
        )
    weights = sum(value.numel() for value in checkpoint["state_dict"].values())
    steps = counted(checkpoint["global_step"], "step")
    say(f"{output} holds {counted(weights, 'weight')} after {steps}.")
