"""Exports that were damaged on their way, or made by somebody who means harm."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import NEWS

from hard import TIMES
from newsrec.export.export import describe
from newsrec.files import file_hash
from newsrec.serving import Recommender
from newsrec.serving.folder import StoredNews, write_news
from newsrec.serving.manifest import settings_hash

MUTATIONS = 150 * TIMES
"""Of each of two kinds."""
REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def export(exported_encoders, tmp_path_factory):
    """A whole export of a tiny model, as the command writes it."""
    module, encoders, _ = exported_encoders
    folder = Path(shutil.copytree(encoders, tmp_path_factory.mktemp("hard") / "export"))
    (folder / "model_card.md").write_text("# A card\n")

    def write_manifest():
        manifest = describe(module, ["title", "abstract"], folder)
        names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
        manifest["files"] = {name: file_hash(folder / name) for name in names}
        manifest["settings_hash"] = settings_hash(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))

    write_manifest()
    recommender = Recommender.load(folder, threads=1)
    categories, subcategories, titles, abstracts = zip(*NEWS.values(), strict=True)
    recommender.add_news(list(NEWS), titles, categories, subcategories, abstracts)
    write_news(StoredNews(recommender.news, recommender.news_vectors), folder)
    write_manifest()
    return folder


def outcomes(export, kind):
    """What came of each seed; a process that died counts as a failure of the seed it was at."""
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    command = [sys.executable, "-m", "hard.mutations", str(export), kind]
    found, first = {}, 0
    while first < MUTATIONS:
        done = subprocess.run(
            [*command, str(first), str(MUTATIONS)], capture_output=True, text=True, env=environment
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        for line in lines:
            found[line[0]] = line[1:] if len(line) == 3 else [line[1], f"died {done.returncode}"]
        first = lines[-1][0] + 1
    return found


@pytest.mark.slow
def test_a_damaged_export_gives_the_same_answers_or_is_refused(export):
    found = outcomes(export, "damaged")
    wrong = {
        seed: line
        for seed, line in found.items()
        if line[1] != "same" and not line[1].startswith("refused")
    }
    assert not wrong
    assert len(found) == MUTATIONS
    kinds = Counter(outcome.split(":")[0] for _, outcome in found.values())
    assert kinds["refused"] > MUTATIONS / 2  # else the mutations would be no test


@pytest.mark.slow
def test_a_forged_export_answers_or_is_refused_and_writes_nothing(export):
    """Its numbers may be anything: whoever makes the files makes the model."""
    found = outcomes(export, "forged")
    allowed = ("same", "other answers", "refused")
    assert not {s: line for s, line in found.items() if not line[1].startswith(allowed)}
    kinds = Counter(outcome.split(":")[0] for _, outcome in found.values())
    assert kinds["refused"] > MUTATIONS / 4
    assert kinds["same"] + kinds["other answers"] > MUTATIONS / 40
