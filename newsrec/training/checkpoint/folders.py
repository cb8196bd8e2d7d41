"""Checkpoints in a folder, into which each process of a sharded run writes its own part.

The weights and the optimizer's state are in the format of ``torch.distributed.checkpoint``, all
else is in ``meta.pt``. PyTorch reads the list of the tensors by pickle, which may run code, so it
is read here: nothing but the classes of this list is built, and tensors are loaded as plain values.
"""

import hashlib
import math
import pickle
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import (
    CheckpointException,
    FileSystemReader,
    FileSystemWriter,
    load,
    save,
)
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from newsrec.aside import put

LISTED, META = ".metadata", "meta.pt"
"""The list of the tensors, and what is not a tensor of the weights or the optimizer."""
OLD = "-old.part"
"""End of the name of a checkpoint that is being replaced."""
WEIGHTS, OPTIMIZER = "state_dict", "optimizer_states"
CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},  # and the types of values
    "pathlib": {"PosixPath", "WindowsPath"},
}
"""What the list of the tensors may be built of, by module."""


class DamagedFolder(Exception):
    """A folder is not as ``write_folder`` left it; the message is the second half of a sentence."""


def is_folder(path: Path) -> bool:
    """Return whether a path is a checkpoint in a folder."""
    return (path / LISTED).is_file() and (path / META).is_file()


def write_folder(folder: Path, checkpoint: Mapping[str, Any], first: bool) -> None:
    """Write a checkpoint into a new folder; every process calls this.

    Args:
        folder: The folder, the same on all processes.
        checkpoint: Lightning's dict, in which weights and optimizer states may be sharded.
        first: Whether this is the first process, which writes all that is not a tensor.
    """
    tensors = {f"{WEIGHTS}/{name}": value for name, value in checkpoint[WEIGHTS].items()}
    optimizers = checkpoint.get(OPTIMIZER, [])
    for place, optimizer in enumerate(optimizers):
        for number, values in optimizer["state"].items():
            tensors |= {f"{OPTIMIZER}/{place}/{number}/{n}": v for n, v in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save(tensors, storage_writer=_Writer(folder))
    if first:
        rest = {n: value for n, value in checkpoint.items() if n not in (WEIGHTS, OPTIMIZER)}
        rest[OPTIMIZER] = [{**optimizer, "state": {}} for optimizer in optimizers]
        torch.save(rest, folder / META)


def put_checkpoint(aside: Path, path: Path) -> None:
    """Rename a complete file or folder to ``path``; a checkpoint of either kind is replaced."""
    if path.is_dir() or aside.is_dir():
        before = path.with_name(f".{path.name}{OLD}")
        with suppress(FileNotFoundError):
            path.rename(before)
        put(aside, path)
        remove(before)
    else:
        put(aside, path)


def recover(folder: Path) -> None:
    """Give back its name to a checkpoint that a killed process was about to replace."""
    for before in folder.glob(f".*{OLD}"):
        path = before.with_name(before.name[1:].removesuffix(OLD))
        if not path.exists():
            with suppress(OSError):  # another process may be faster
                before.rename(path)


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_folder(folder: Path) -> dict[str, Any]:
    """Return Lightning's dict of a checkpoint in a folder, with whole tensors on the CPU.

    Each process that calls this reads all of it; the number of processes that wrote it does not
    matter. Any exception may be raised for a folder that ``write_folder`` did not write.
    """
    checkpoint = torch.load(folder / META, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict):
        raise DamagedFolder(f"{META} holds no table of values")
    reader = _Reader(folder)
    tensors = reader.empty()
    reader.check_hashes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group
            load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:  # not an Exception
        raise DamagedFolder(str(next(iter(error.failures.values()))[0])) from error
    checkpoint[WEIGHTS] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        if part == WEIGHTS:
            checkpoint[WEIGHTS][rest] = value
            continue
        place, number, key = rest.split("/")
        checkpoint[OPTIMIZER][int(place)]["state"].setdefault(int(number), {})[key] = value
    return checkpoint


class _Writer(FileSystemWriter):
    """Adds a hash to each entry of the list of the tensors."""

    def write_data(self, *args: Any, **kwargs: Any) -> Future[list[WriteResult]]:
        """Write this process's parts; PyTorch gathers the entries and writes the list."""
        written = super().write_data(*args, **kwargs)
        for part in written.wait():
            entry = part.storage_data
            entry.sha256 = _hash_of(Path(self.path), part.index, entry)
        return written


def _hash_of(folder: Path, index: MetadataIndex, entry: Any) -> str:
    """Return a hash of a part's bytes, its tensor's name and its place in the tensor."""
    hashed = hashlib.sha256(repr((index.fqn, list(index.offset or ()))).encode())
    with (folder / entry.relative_path).open("rb") as file:
        file.seek(entry.offset)
        left = entry.length
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            hashed.update(block)
            left -= len(block)
    return hashed.hexdigest()


class _Reader(FileSystemReader):
    """Reads the list of the tensors without running what it asks for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the list; ``DamagedFolder`` if it is not one, or does not fit the files."""
        folder = Path(self.path)
        with (folder / LISTED).open("rb") as file:
            found = _Unpickler(file).load()
        if not isinstance(found, Metadata):
            raise DamagedFolder(f"{LISTED} is not a list of tensors")
        files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        total = 0
        for name, tensor in found.state_dict_metadata.items():
            if not isinstance(tensor, TensorStorageMetadata):
                raise DamagedFolder(f"{name!r} is not a tensor")
            if not _covers(tensor):
                raise DamagedFolder(f"parts of {name!r} are missing")
            total += math.prod(tensor.size) * tensor.properties.dtype.itemsize
        for entry in found.storage_data.values():
            size = files.get(entry.relative_path, -1)
            if entry.transform_descriptors or not 0 <= entry.offset <= size - entry.length:
                raise DamagedFolder(f"{entry.relative_path!r} is missing or was cut off")
        if total > sum(files.values()):
            raise DamagedFolder(f"{LISTED} lists more values than the files have")
        found.storage_meta = None
        return found

    def check_hashes(self) -> None:
        """Compare the files with the hashes in the list; older folders have none.

        Raises:
            DamagedFolder: If a part differs, or is another tensor's.
        """
        for index, entry in self.read_metadata().storage_data.items():
            expected = getattr(entry, "sha256", None)
            if expected is not None and expected != _hash_of(Path(self.path), index, entry):
                raise DamagedFolder(
                    f"{index.fqn!r} was changed after it was written, in {entry.relative_path!r}"
                )

    def empty(self) -> dict[str, Tensor]:
        """Return a tensor to be filled for each one in the list."""
        listed = self.read_metadata().state_dict_metadata
        return {
            name: torch.zeros(tensor.size, dtype=tensor.properties.dtype)
            for name, tensor in listed.items()
            if isinstance(tensor, TensorStorageMetadata)
        }


def _covers(tensor: TensorStorageMetadata) -> bool:
    """Return whether a tensor's parts follow each other along its first axis, without a gap."""
    if not tensor.size:
        return len(tensor.chunks) == 1 and not tensor.chunks[0].sizes
    first, *others = tensor.size
    if any(len(c.offsets) != len(tensor.size) for c in tensor.chunks):
        return False
    parts = sorted((c.offsets[0], c.sizes[0]) for c in tensor.chunks)
    if min(tensor.size) < 0 or any(
        c.sizes[0] < 0 or [*c.sizes[1:]] != others or any(c.offsets[1:]) for c in tensor.chunks
    ):
        return False
    end = 0
    for offset, length in parts:
        if length and offset != end:
            return False
        end += length
    return end == first


class _Unpickler(pickle.Unpickler):
    """Builds the classes of a list of tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of the list; ``DamagedFolder`` for any other."""
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in CLASSES.get(module, ()):
            raise DamagedFolder(f"it asks for {module}.{name}, which may run code")
        return super().find_class(module, name)
