"""Checkpoints in folders of parts: what is written is read, and strangers' folders are refused."""

import copy
import io
import os
import pickle
import shutil

import pytest
import torch
from conftest import refused
from torch import distributed
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from newsrec.__main__ import main
from newsrec.errors import MissingModelError, ModelError
from newsrec.training.checkpoint.folders import LISTED, META, put_checkpoint, write_folder
from newsrec.training.checkpoint.read import read_checkpoint, resolve_checkpoint
from newsrec.training.trained_run import TrainedRun


@pytest.fixture(scope="module")
def run(tmp_path_factory, served):
    """The checkpoint of ``served``, and the same in a folder of parts."""
    folder = tmp_path_factory.mktemp("folders") / "parts.ckpt"
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        checkpoint = torch.load(served.best, weights_only=True)
        mesh = init_device_mesh("cpu", (1,))
        shards = {
            name: distribute_tensor(value, mesh, [Shard(0)]) if value.ndim else value
            for name, value in checkpoint["state_dict"].items()
        }
        write_folder(folder, checkpoint | {"state_dict": shards}, True)
    finally:
        distributed.destroy_process_group()
    return served.best, folder


@pytest.fixture
def parts(run, tmp_path):
    """A copy of the folder, to be spoiled."""
    return shutil.copytree(run[1], tmp_path / "parts.ckpt")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_folder_becomes_one_file(run, tmp_path, capsys):
    best, folder = run
    out = tmp_path / "whole.ckpt"
    main(["convert-checkpoint", str(folder), f"--output={out}"])
    assert "weights after" in capsys.readouterr().out
    assert same(torch.load(out, weights_only=True), read_checkpoint(best))
    assert same(read_checkpoint(folder, in_parts=True), read_checkpoint(best))
    TrainedRun.open(out).module  # noqa: B018, builds the model
    assert [path.name for path in tmp_path.iterdir()] == ["whole.ckpt"]
    assert "exists" in refused(capsys, "convert-checkpoint", folder, f"--output={out}")
    other = tmp_path / "other.ckpt"
    assert "one file already" in refused(capsys, "convert-checkpoint", best, f"--output={other}")
    said = refused(capsys, "convert-checkpoint", tmp_path / "none", f"--output={other}")
    assert f"FOLDER {tmp_path / 'none'} does not exist" in said
    assert "--ckpt_path" not in said


def test_a_file_that_cannot_be_written_is_refused_with_a_way_on(run, tmp_path, capsys, monkeypatch):
    blocked = tmp_path / "text"
    blocked.write_text("")
    said = refused(capsys, "convert-checkpoint", run[1], f"--output={blocked / 'whole.ckpt'}")
    assert "is a file, not a folder" in said
    inside = refused(capsys, "convert-checkpoint", run[1], f"--output={run[1] / 'whole.ckpt'}")
    assert "a resumed run replaces" in inside

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    said = refused(capsys, "convert-checkpoint", run[1], f"--output={tmp_path / 'whole.ckpt'}")
    assert "No space left" in said
    assert "start a new run" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_run_folder_names_the_folder_of_parts_in_it(run, tmp_path, capsys):
    shutil.copytree(run[1], tmp_path / "run" / "checkpoints" / "best.ckpt")
    said = refused(capsys, "convert-checkpoint", tmp_path / "run", f"--output={tmp_path / 'a'}")
    assert f"Give the checkpoint in it: {tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}" in said
    said = refused(capsys, "convert-checkpoint", "https://a/b", f"--output={tmp_path / 'a'}")
    assert "https://a/b is a URL" in said


def test_scoring_a_folder_says_how_to_make_a_file_of_it(run):
    with pytest.raises(MissingModelError, match=r"newsrec convert-checkpoint .*parts\.ckpt --out"):
        TrainedRun.open(run[1])


def test_a_folder_and_a_file_replace_each_other(run, tmp_path):
    path = tmp_path / "last.ckpt"
    for number in range(3):
        folder, file = tmp_path / "new", tmp_path / "file"
        shutil.copytree(run[1], folder)
        put_checkpoint(folder, path)
        assert read_checkpoint(path, in_parts=True)["newsrec"]
        file.write_text(str(number))
        put_checkpoint(file, path)
        assert path.read_text() == str(number)
        assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_whose_replacing_was_interrupted_is_found(run, tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    shutil.copytree(run[1], path.with_name(".last.ckpt-old.part"))
    shutil.copytree(run[1], path.with_name(".last.ckpt-new.part"))
    assert resolve_checkpoint("last", tmp_path) == path
    assert read_checkpoint(path, in_parts=True)["newsrec"]


class Evil:
    """Runs a command when it is unpickled by plain pickle."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def with_evil(folder):
    metadata = pickle.loads((folder / LISTED).read_bytes())
    metadata.planner_data = Evil()
    (folder / LISTED).write_bytes(pickle.dumps(metadata))


def with_path_outside(folder):
    metadata = pickle.loads((folder / LISTED).read_bytes())
    for entry in metadata.storage_data.values():
        entry.relative_path = f"../parts.ckpt/{entry.relative_path}"
    (folder / LISTED).write_bytes(pickle.dumps(metadata))


def with_giant(folder):
    metadata = pickle.loads((folder / LISTED).read_bytes())
    tensor = next(iter(metadata.state_dict_metadata.values()))
    tensor.size = tensor.chunks[0].sizes = torch.Size([10**14])
    tensor.chunks[0].offsets = torch.Size([0])
    (folder / LISTED).write_bytes(pickle.dumps(metadata))


def without_a_part(folder):
    metadata = pickle.loads((folder / LISTED).read_bytes())
    next(t for t in metadata.state_dict_metadata.values() if len(t.size) == 2).chunks.clear()
    (folder / LISTED).write_bytes(pickle.dumps(metadata))


def with_a_part_twice(folder):
    metadata = pickle.loads((folder / LISTED).read_bytes())
    tensor = next(t for t in metadata.state_dict_metadata.values() if t.size[:1] > (1,))
    rows, *others = tensor.size
    tensor.chunks = [ChunkStorageMetadata(torch.Size([0] * (1 + len(others))), torch.Size(s))
                     for s in ([rows // 2, *others], [rows - rows // 2, *others])]  # fmt: skip
    (folder / LISTED).write_bytes(pickle.dumps(metadata))


def with_giant_and_its_negative(folder):
    metadata = pickle.loads((folder / LISTED).read_bytes())
    tensors = metadata.state_dict_metadata
    giant, negative = (copy.deepcopy(next(iter(tensors.values()))) for _ in range(2))
    for tensor, size in ((giant, [10**14]), (negative, [-(10**14)])):
        tensor.size = torch.Size(size)
        tensor.chunks = [ChunkStorageMetadata(torch.Size([0]), torch.Size(size))]
    metadata.state_dict_metadata = {"giant": giant, "negative": negative} | tensors
    (folder / LISTED).write_bytes(pickle.dumps(metadata))


def cut(folder):
    shard = next(folder.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-2000])


def zeroed(folder):
    shard = next(folder.glob("*.distcp"))
    shard.write_bytes(bytes(shard.stat().st_size))


def swapped(folder):
    """Exchange two tensors of the same shape in the list."""
    metadata = pickle.loads((folder / LISTED).read_bytes())
    entries, tensors = metadata.storage_data, metadata.state_dict_metadata
    places = {}
    for index in entries:
        places.setdefault(tuple(tensors[index.fqn].size), []).append(index)
    one, other = next(some[:2] for some in places.values() if len(some) > 1)
    entries[one], entries[other] = entries[other], entries[one]
    (folder / LISTED).write_bytes(pickle.dumps(metadata))


def without_hashes(folder):
    """Make a folder as older versions wrote it."""
    metadata = pickle.loads((folder / LISTED).read_bytes())
    for entry in metadata.storage_data.values():
        del entry.sha256
    (folder / LISTED).write_bytes(pickle.dumps(metadata))


def with_a_flipped_bit(folder):
    metadata = pickle.loads((folder / LISTED).read_bytes())
    entry = max(metadata.storage_data.values(), key=lambda entry: entry.length)
    shard = folder / entry.relative_path
    content = bytearray(shard.read_bytes())
    content[entry.offset + entry.length * 3 // 4] ^= 1
    shard.write_bytes(content)


def test_a_folder_of_an_older_version_without_hashes_is_read(run, parts):
    without_hashes(parts)
    assert same(read_checkpoint(parts, in_parts=True), read_checkpoint(run[0]))


def evil_values(folder):
    file = io.BytesIO()
    torch.save({"newsrec": Evil()}, file)
    (folder / META).write_bytes(file.getvalue())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (with_evil, r"asks for posix\.system, which may run code"),
        (with_path_outside, "missing or was cut off"),
        (with_giant, "more values than the files have"),
        (with_giant_and_its_negative, "parts of 'negative' are missing"),
        (without_a_part, "parts of .* are missing"),
        (with_a_part_twice, "parts of .* are missing"),
        (cut, "missing or was cut off"),
        (zeroed, "was changed after it was written"),
        (swapped, "was changed after it was written"),
        (with_a_flipped_bit, "was changed after it was written"),
        (lambda f: (without_hashes(f), zeroed(f)), "Is the folder whole"),
        (evil_values, "Is the folder whole"),
        (lambda f: (f / LISTED).write_bytes(pickle.dumps({"a": 1})), "not a list of tensors"),
        (lambda f: (f / LISTED).write_bytes(b""), "Is the folder whole"),
        (lambda f: (f / META).write_bytes(b"text"), "Is the folder whole"),
        (lambda f: torch.save([1], f / META), "no table of values"),
        (lambda f: torch.save({"newsrec": {}}, f / META), "another project|newsrec format|Is the"),
        (lambda f: (f / META).unlink(), "sharded checkpoint of Lightning"),
        (lambda f: (f / LISTED).unlink(), "is a folder"),
    ],
)
def test_a_damaged_or_hostile_folder_is_refused(parts, tmp_path, capsys, monkeypatch, spoil, said):
    monkeypatch.chdir(tmp_path)
    spoil(parts)
    with pytest.raises((ModelError, MissingModelError), match=said):
        read_checkpoint(parts, in_parts=True)
    refused(capsys, "convert-checkpoint", parts, "--output=whole.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["parts.ckpt"]
