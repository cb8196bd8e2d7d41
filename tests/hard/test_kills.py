"""``export``, ``encode-news`` and ``fit``, killed at any moment."""

import csv
import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import fit_options, tiny_behaviors, tiny_news, write_mind
from resuming import assert_same, last
from warm import Process, run

from hard import TIMES
from newsrec.__main__ import main
from newsrec.aside import MARK
from newsrec.serving import Recommender
from newsrec.serving.folder import ExportFolder
from newsrec.training.processes.run_lock import HOLDER

ENCODE_KILLS, EXPORT_KILLS, FIT_KILLS = 12 * TIMES, TIMES, 2 * TIMES


@pytest.fixture(scope="module")
def trained(plm_dir, tmp_path_factory):
    """A data folder, and a checkpoint of a tiny model."""
    root = tmp_path_factory.mktemp("kills")
    mind = write_mind(root / "mind", tiny_news(), tiny_behaviors())
    main([*fit_options(mind, plm_dir, root / "run"), "--trainer.max_epochs=1"])
    return mind, root / "run" / "checkpoints" / "best.ckpt"


def left_overs(output):
    return list(output.parent.glob(f".{output.name}{MARK}*"))


def kill_often(command, output, times, check):
    """Run a command again and again, killed ever later, until so many runs were killed."""
    rng = random.Random(0)
    duration, killed = 1.0, 0
    while killed < times:
        old = set(left_overs(output))
        process, start = Process(command), None
        until = rng.uniform(0, duration)
        while process.returncode is None:
            if start is None and set(left_overs(output)) - old:
                start = time.monotonic()
            if start is not None and time.monotonic() - start >= until:
                process.process.kill()
                killed += 1
                break
            time.sleep(0.002)
        assert process.finish().returncode in (0, -9)
        assert len(left_overs(output)) <= 1  # its own: it took away those before
        if output.exists():
            check(output)
            shutil.rmtree(output)
            if start is not None and process.returncode == 0:
                duration = time.monotonic() - start
    assert run(command).returncode == 0
    assert left_overs(output) == []
    check(output)


@pytest.mark.slow
def test_a_killed_encode_news_leaves_a_whole_folder_or_none(trained, exported, tmp_path):
    mind, _ = trained
    news = mind / "test" / "news.tsv"
    output = tmp_path / "new"
    expected = Recommender.load(exported, threads=1)
    assert len(expected.news) == 0

    def check(folder):
        recommender = Recommender.load(folder, threads=1)
        assert len(recommender.news) == len(news.read_text().splitlines())
        for name in recommender.folder.manifest["files"]:
            recommender.folder.file(name)

    command = ["encode-news", exported, "--news", news, "--output", output]
    kill_often(command, output, ENCODE_KILLS, check)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.slow
def test_a_killed_export_leaves_a_whole_folder_or_none(trained, tmp_path):
    mind, checkpoint = trained
    output = tmp_path / "new"

    def check(folder):
        found = ExportFolder(folder)
        assert {path.name for path in folder.iterdir()} == {
            "manifest.json",
            "README.md",
            *found.manifest["files"],
        }
        for name in found.manifest["files"]:
            found.file(name)

    command = ["export", "--ckpt_path", checkpoint, "--output", output, "--data.root", mind]
    kill_often(command, output, EXPORT_KILLS, check)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.fixture(scope="module")
def exported(exported_encoders, tmp_path_factory):
    """An export without news."""
    import json

    from newsrec.export.export import describe
    from newsrec.files import file_hash

    module, encoders, _ = exported_encoders
    folder = Path(shutil.copytree(encoders, tmp_path_factory.mktemp("kills") / "export"))
    files = {path.name: file_hash(path) for path in folder.iterdir()}
    manifest = describe(module, ["title"], folder) | {"files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def until_it_trains(process, run):
    """Wait until the run folder is the process's, or it ends; return the time."""
    while process.returncode is None:
        try:
            if json.loads((run / HOLDER).read_text())["pid"] == process.pid:
                break
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.005)
    return time.monotonic()


def logged(run):
    """Return steps and values of all that is logged, but for speeds."""
    series = {}
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and not name.startswith("speed/"):
                    series.setdefault(name, []).append((row["step"], value))
    return series


@pytest.mark.slow
def test_a_fit_killed_at_any_moment_goes_on_bit_for_bit(plm_dir, tmp_path):
    """Each run is killed up to three times, then ends; SIGKILL leaves it nothing to do."""
    mind = write_mind(tmp_path / "mind", tiny_news(), tiny_behaviors())
    dropout = [f"--model.{part}={{heads: 2, ffn: 16, dropout: 0.3}}" for part in ("news", "user")]
    options = [
        *fit_options(mind, plm_dir, "run"), *dropout,
        "--model.tune_layers=1", "--data.batch_size=4", "--save_every=2", "--threads=1",
        "--trainer.max_epochs=4", "--trainer.log_every_n_steps=1", "--baselines=false",
        "--ckpt_path=auto",
    ]  # fmt: skip
    whole = tmp_path / "whole"
    process = Process([*options, f"--output={whole}"])
    start = until_it_trains(process, whole)
    assert process.finish().returncode == 0
    duration = time.monotonic() - start
    rng, killed, number = random.Random(15), 0, 0
    while killed < FIT_KILLS:
        folder = tmp_path / f"run{number}"
        number += 1
        for _ in range(3):
            process = Process([*options, f"--output={folder}"])
            until = until_it_trains(process, folder) + rng.uniform(0, duration)
            while process.returncode is None and time.monotonic() < until:
                time.sleep(0.002)
            if process.returncode is not None or killed == FIT_KILLS:
                break
            process.process.kill()
            process.finish()
            killed += 1
        ended = process.finish()
        if ended.returncode == -9:
            ended = Process([*options, f"--output={folder}"]).finish()
        assert ended.returncode == 0, (folder, ended.stderr)
        assert_same(last(whole), last(folder), str(folder))
        best = [
            torch.load(r / "checkpoints" / "best.ckpt", weights_only=True) for r in (whole, folder)
        ]
        assert_same(*(checkpoint["state_dict"] for checkpoint in best), str(folder))
        assert logged(folder) == logged(whole)
        assert not list(folder.glob("checkpoints/.*.part"))
        shutil.rmtree(folder)
