"""The command ``batch``: recommend news for all users of Parquet files, without PyTorch."""

import argparse

from newsrec.addresses import without_secrets
from newsrec.commands.common import add_on_bad_line
from newsrec.console import counted, say
from newsrec.errors import UserError
from newsrec.serving.batch import RESULTS
from newsrec.serving.batch_engines import ENGINES
from newsrec.serving.batch_run import run_batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("export_dir", help="folder that export wrote")
    use = "Parquet file, or folder of such files, with the columns user_id and history (news "
    use += (
        "ids, oldest first), maybe candidates and time; a path or address such as s3://bucket/users"
    )
    add("--users", required=True, metavar="PATH", help=use)
    use = (
        "folder (absent or empty) or address such as s3://bucket/results, into which Parquet files "
        "with a row for each user are written"
    )
    add("--output", required=True, help=use)
    use = "news: the best news of the export; ranks: scores and ranks of each user's candidates; "
    use += "vectors: user vectors"
    add("--result", choices=tuple(RESULTS), default="news", help=use)
    add("-k", type=int, default=100, help="news items for each user, with --result news")
    add("--exclude_history", type=bool, default=True, help="leave out news that the user clicked")
    use = "local: processes of this machine; ray, spark: actors or tasks here or on a cluster"
    add("--engine", choices=ENGINES, default="local", help=use)
    use = "users scored at once: processes and threads, actors of Ray, or tasks of Spark on this "
    use += "machine; all cores unless given"
    add("--workers", type=int, default=None, metavar="N", help=use)
    use = "address of a Ray cluster, such as auto or 10.0.0.1:6379, whose machines have the same "
    use += "files at the same paths; without it Ray starts on this machine"
    add("--ray_address", default=None, metavar="ADDRESS", help=use)
    use = "master of a Spark cluster, such as spark://10.0.0.1:7077; without it Spark starts on "
    use += "this machine, unless spark-submit runs the command"
    add("--spark_master", default=None, metavar="MASTER", help=use)
    use = "users in each file of the output; after a failure, unfinished files are scored again"
    add("--users_per_part", type=int, default=20_000, metavar="N", help=use)
    use = "continue a stopped run of the same command: keep the files that it finished"
    add("--resume", action="store_true", help=use)
    add_on_bad_line(parser, "--on_bad_line", of="the users")


def run(args: argparse.Namespace) -> None:
    """Score all users, and say how many."""
    addresses = {"ray": args.ray_address, "spark": args.spark_master}
    for engine, option in (("ray", "ray_address"), ("spark", "spark_master")):
        if addresses[engine] is not None and args.engine != engine:
            raise UserError(
                f"--{option} is for --engine {engine}, and --engine is {args.engine}. Leave it out."
            )
    names = (
        "engine",
        "workers",
        "result",
        "k",
        "exclude_history",
        "users_per_part",
        "on_bad_line",
        "resume",
    )
    manifest = run_batch(
        args.export_dir,
        args.users,
        args.output,
        address=addresses.get(args.engine),
        **{name: getattr(args, name) for name in names},
    )
    counts = manifest["counts"]
    files = counted(len(manifest["parts"]), "file")
    say(f"{without_secrets(args.output)} has {counted(counts['users'], 'user')} in {files}.")
    told = {
        "bad_rows": "Rows left out",
        "unknown_history": "Ids of histories that are not in the export, left out",
        "unknown_candidates": "Candidates that are not in the export, given the mean news vector",
    }
    for name, words in told.items():
        if counts.get(name):
            say(f"{words}: {counts[name]:,}.")
