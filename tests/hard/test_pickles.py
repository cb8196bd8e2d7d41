"""Files that would run a stranger's code where they are read by pickle: none of it runs."""

import contextlib
import io
import json
import os
import pathlib
import pickle
import shutil

import checkpoints
import numpy as np
import pytest
import torch

from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.serving import Recommender
from newsrec.training.checkpoint.read import read_checkpoint


class Payload:
    """Calls a function where it is unpickled."""

    def __init__(self, function, *values):
        self.call = (function, values)

    def __reduce__(self):
        return self.call


def payloads(mark):
    """Return objects that write the file ``mark`` where they are unpickled, by their kind."""
    return {
        "exec": Payload(exec, f"open({str(mark)!r}, 'w').write('x')"),
        "eval": Payload(eval, f"open({str(mark)!r}, 'w').write('x')"),
        "open": Payload(open, str(mark), "w"),
        "system": Payload(os.system, f"touch {mark}"),
        "method": Payload(pathlib.Path.touch, mark),
        "map": Payload(list, Payload(map, pathlib.Path.touch, [mark])),
    }


KINDS = [*payloads(pathlib.Path("x"))]
PLACES = [
    *((), ("newsrec", "plm_config"), ("newsrec", "metrics"), ("hyper_parameters", "news")),
    *(("state_dict", "recommender.news_encoder.project.weight"), ("callbacks",), ("loops", "x")),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, plm_dir):
    return checkpoints.train(tmp_path_factory.mktemp("pickles"), plm_dir)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "was_here"


def hostile(trained, payload, place):
    """Return a checkpoint with a payload at a place in it, or in the place of all of it."""
    if not place:
        return payload
    checkpoint = node = checkpoints.content(trained)
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = payload
    return checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_the_payload_would_run(kind, mark):
    pickle.loads(pickle.dumps(payloads(mark)[kind]))
    assert mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place) or "all")
def test_a_hostile_checkpoint_is_refused_and_nothing_runs(trained, mark, tmp_path, kind, place):
    path = tmp_path / "stranger.ckpt"
    checkpoint = hostile(trained, payloads(mark)[kind], place)
    for zipped in (True, False):
        torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=str(path)):
            read_checkpoint(path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        if not place:
            path.write_bytes(pickle.dumps(checkpoint, protocol))
            with pytest.raises(UserError, match=str(path)):
                read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "export", "fit"])
def test_no_command_runs_what_a_checkpoint_holds(trained, mark, tmp_path, capsys, command):
    path = tmp_path / "stranger.ckpt"
    torch.save(hostile(trained, payloads(mark)["exec"], ("newsrec", "metrics")), path)
    mind = trained.parent / "mind"
    of = [f"--data.root={mind}", "--trainer.accelerator=cpu"]
    more = {"evaluate": [*of, "--split=dev"], "fit": of}
    options = [f"--ckpt_path={path}", f"--output={tmp_path / 'out'}", *more.get(command, [])]
    with pytest.raises(SystemExit) as stop:
        main([command, *options])
    assert stop.value.code == 2
    assert str(path) in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_array_of_an_export_is_unpickled(exported_encoders, mark, tmp_path, kind):
    """Every file in turn is a pickle, or an array of objects, and the manifest agrees."""
    from test_manifest import rewrite

    from newsrec.export.export import describe
    from newsrec.export.weights import load_model

    module, encoders, _ = exported_encoders
    payload = payloads(mark)[kind]
    array = io.BytesIO()
    np.save(array, np.array([payload], dtype=object), allow_pickle=True)
    names = [path.name for path in encoders.iterdir()] + ["news_vectors.npy"]
    for number, name in enumerate(names):
        for content in (pickle.dumps(payload), array.getvalue()):
            folder = pathlib.Path(shutil.copytree(encoders, tmp_path / str(number)))
            (folder / name).write_bytes(content)
            manifest = folder / "manifest.json"
            manifest.write_text(json.dumps(describe(module, ["title"], folder)))
            rewrite(folder)
            for read in (lambda path: Recommender.load(path, threads=1), load_model):
                with contextlib.suppress(UserError):
                    read(folder)
            assert not mark.exists()
            shutil.rmtree(folder)
