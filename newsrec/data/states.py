"""States of a PLM's frozen layers, computed once and kept beside the data.

Frozen layers give the same states in every step. The states are in sealed folders, called parts, in
the data folder's cache (see ``cache.py``). Each part has the states of some news. Its name is made
from everything that changes the states (frozen weights, layer, precision) and a hash of its texts.
Parts that a killed process finished are kept, and only missing states are computed. News added
later get parts of their own.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import HASH_BYTES, Catalogue
from newsrec.data.cache import (
    build_lock,
    building,
    cache_folders,
    digest,
    full_disk_mistakes,
    is_intact,
    seal,
    writable_folder,
)
from newsrec.data.npy import NpyWriter
from newsrec.data.ragged import to_offsets
from newsrec.data.team import ALONE, Team, divide
from newsrec.errors import UserError

STATES_FORMAT = 2
PRECISIONS = ("bf16", "fp32", "none")
"""How states are stored; with none, the whole PLM runs in every step."""
STORED = {"bf16": (torch.bfloat16, np.int16), "fp32": (torch.float32, np.float32)}
"""Type of states in memory and in files. NumPy has no bfloat16, so files hold the bits as int16."""
PART_BYTES = 256 << 20
"""Size at which a part is sealed. A killed process loses at most this many bytes."""
NEWS_PER_PASS = 1024
MISSING = "missing.npy"
"""File that tells all processes which rows lack states."""
SHOWN_LATE = 120.0
"""Most seconds until a network disk shows new folders of another machine."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class TokenStates:
    """States of the real tokens of all news, read from the parts, which are memory-mapped.

    Frozen layers run without dropout, so training on these states gives the same loss as training
    through the whole PLM, at a lower cost.
    """

    parts: Sequence[Tensor]
    """States of some texts' real tokens, joined, each ``[tokens, hidden]``."""
    part: Tensor
    """Index of the part that holds each news item's states ``[news]``."""
    starts: Tensor
    """Where a news item's states begin in its part ``[news]``."""
    lengths: Tensor
    """Tokens of each news item, on the CPU ``[news]``."""

    @property
    def exact(self) -> bool:
        """Whether the states are stored in float32, as they were computed."""
        return all(part.dtype == torch.float32 for part in self.parts)

    def take(self, rows: Tensor) -> Tensor:
        """Return the states of the real tokens of some news, joined ``[tokens, hidden]``."""
        lengths = self.lengths[rows]
        ends = lengths.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        places = (self.starts[rows] - ends + lengths).repeat_interleave(lengths)
        places += torch.arange(total)
        first, *others = (_bits(part) for part in self.parts)
        if not others:
            return torch.from_numpy(first.take(places.numpy(), axis=0)).view(self.parts[0].dtype)
        owner = self.part[rows].repeat_interleave(lengths)
        taken = np.empty((total, first.shape[1]), first.dtype)
        for number, values in enumerate((first, *others)):
            here = (owner == number).numpy()
            taken[here] = values.take(places.numpy()[here], axis=0)
        return torch.from_numpy(taken).view(self.parts[0].dtype)


def _bits(part: Tensor) -> NDArray[Any]:
    """Return a part as an array of the same memory.

    NumPy's memory has large pages, a tensor's small ones. With a large
    batch, the system needs four times as long to hand out small pages as to copy the states.
    """
    array: NDArray[Any] = (part.view(torch.int16) if part.dtype == torch.bfloat16 else part).numpy()
    return array


@dataclass
class RunStates:
    """The states that a run uses, set once they are known.

    A learning-rate schedule that needs the number of steps makes Lightning build the training
    loader before the model is on its device, so before states can be computed. The loader's data
    set therefore asks this object for the states at each batch.
    """

    now: TokenStates | None = None
    """None if they are not known yet or not used."""


class _Place(NamedTuple):
    part: int
    start: int


class StateStore:
    """The parts in a data folder's cache that hold the states of one PLM, of size ``hidden``.

    ``plm_key`` is a hash of the layers that compute the states, see ``CutPlm.key``; ``precision``
    is bf16 or fp32.
    """

    def __init__(self, root: Path, plm_key: str, hidden: int, precision: str) -> None:
        self.root = root
        self.hidden = hidden
        self.dtype, self.bits = STORED[precision]
        self.prefix = f"states-{digest(STATES_FORMAT, plm_key, hidden, precision)}-"

    def read(self, catalogue: Catalogue) -> tuple[TokenStates, Tensor]:
        """Return a catalogue's states, and the rows of distinct news that have no states yet.

        ``take`` works only for rows that have states. UserError if a part has another shape.
        """
        parts: list[Tensor] = [torch.zeros(0, self.hidden, dtype=self.dtype)]
        places: dict[bytes, _Place] = {}
        for folder in self._folders():
            arrays = _load(folder)
            if arrays is None:
                continue
            values, keys, ends = arrays
            if values.ndim != 2 or values.shape[1] != self.hidden or len(values) != ends[-1]:
                raise UserError(
                    f"{folder} holds states of shape {list(values.shape)}; this PLM's are "
                    f"[{ends[-1]}, {self.hidden}]. Remove it; the states are computed again."
                )
            parts.append(torch.from_numpy(values).view(self.dtype))
            for key, start in zip(keys, ends.tolist(), strict=False):
                places[key.tobytes()] = _Place(len(parts) - 1, start)
        rows = distinct_rows(catalogue)
        found = [places.get(key, _Place(-1, 0)) for key in catalogue.text_hashes(rows)]
        part, starts = (torch.zeros(len(catalogue.first), dtype=torch.int64) for _ in range(2))
        part[rows] = torch.tensor([place.part for place in found], dtype=torch.int64)
        starts[rows] = torch.tensor([place.start for place in found], dtype=torch.int64)
        part, starts = part[catalogue.first], starts[catalogue.first]
        used = sorted({place.part for place in found} - {-1})
        if len(used) == 1:  # the usual case; take() is fastest with one part
            parts, part = [parts[used[0]]], part.clamp(max=0)
        missing = rows[part[rows] < 0]
        return TokenStates(parts, part, starts, catalogue.token_lengths), missing

    def find_or_compute(
        self, catalogue: Catalogue, compute: Callable[[Tensor], Tensor], team: Team = ALONE
    ) -> TokenStates:
        """Return the states of a catalogue; compute those that are missing, if the disk has room.

        ``compute`` returns the states of the real tokens of some rows, joined ``[tokens, hidden]``.
        The processes of ``team`` share the data folder and divide the work. All of them must call
        this, and all fail if one fails. The stored bytes do not depend on the number of processes.
        """
        with team.failing_together(), ExitStack() as stack:
            states, missing = self.read(catalogue)
            if team.all_agree(not len(missing)):
                return states
            work = None if team.rank else self._begin(catalogue, stack, team)
            name = team.share(None if work is None else work.name)
            if name is not None:
                places = [base / name for base in cache_folders(self.root)]
                with team.failing_together():  # tells the others before ``work`` is removed
                    work = work or next(filter(Path.is_dir, places), places[0])
                    self._compute(work, catalogue, compute, team)
            team.meet()
        states, missing = self.read(catalogue)
        end = time.monotonic() + SHOWN_LATE
        while len(missing) and team.size > 1 and time.monotonic() < end:
            time.sleep(1.0)
            states, missing = self.read(catalogue)
        assert not len(missing)
        return states

    def _begin(self, catalogue: Catalogue, stack: ExitStack, team: Team) -> Path | None:
        """Lock the cache and return a folder to work in; None if no states are missing by then."""
        from newsrec.console import counted

        base = writable_folder(self.root)
        stack.enter_context(build_lock(base))
        for folder in self._folders():
            if _load(folder) is None:
                log.info("%s is damaged: its states are computed again", folder)
                shutil.rmtree(folder, ignore_errors=True)  # fails if another user owns it
        _, missing = self.read(catalogue)  # another process may have computed them
        if not len(missing):
            return None
        news = counted(len(missing), "news item")
        need = int(catalogue.token_lengths[missing].sum()) * self.hidden * self.dtype.itemsize
        free = shutil.disk_usage(base).free
        room = f"{need / 2**20:,.1f} MiB in {base}"
        if need > free:
            half = "bf16 (half as much) or " if self.dtype == torch.float32 else ""
            raise UserError(
                f"The frozen layers' states of {news} need {room}, where "
                f"{free / 2**20:,.1f} MiB are free. Free more, or set --data.frozen_states to "
                f"{half}none (the whole PLM runs in every step)."
            )
        log.info("frozen layers of the PLM: computing %s once, %s%s", news, room, team.described)
        work = stack.enter_context(building(base))
        np.save(work / MISSING, missing.numpy())
        return work

    def _compute(
        self, work: Path, catalogue: Catalogue, compute: Callable[[Tensor], Tensor], team: Team
    ) -> None:
        """Compute this process's blocks of news; the first process seals all blocks in parts.

        The others write their blocks into ``work``. The first reads all blocks in order, and
        computes its own in between. It seldom waits, since the work up to any block is divided
        evenly.
        """
        missing = torch.from_numpy(np.load(work / MISSING))
        ends = catalogue.token_lengths[missing].cumsum(0) * self.hidden * self.dtype.itemsize
        parts = missing.split(torch.bincount((ends - 1) // PART_BYTES).tolist())
        blocks = [block for rows in parts if len(rows) for block in rows.split(NEWS_PER_PASS)]
        owners = divide([int(catalogue.token_lengths[b].sum()) for b in blocks], team.size)

        def block(number: int) -> NDArray[Any]:
            path = work / str(number)
            if owners[number] != team.rank:
                team.hear(f"{work.name}/{number}")
                values = np.fromfile(path, self.bits).reshape(-1, self.hidden)
                path.unlink()
                return values
            found = compute(blocks[number]).to(self.dtype).cpu().contiguous()
            return found.view(torch.uint8).numpy().view(self.bits)

        if not team.rank:
            self._seal(work.parent, catalogue, parts, map(block, range(len(blocks))))
            return
        for number in (n for n, owner in enumerate(owners) if owner == team.rank):
            team.check()
            values = block(number)
            with full_disk_mistakes(work.parent):
                (work / str(number)).write_bytes(values.data)
            team.tell(f"{work.name}/{number}")

    def _seal(
        self,
        base: Path,
        catalogue: Catalogue,
        parts: Sequence[Tensor],
        blocks: Iterator[NDArray[Any]],
    ) -> None:
        """Write the states of all blocks, in order, into sealed parts; ``parts`` has their rows."""
        from newsrec.console import progress

        lengths = catalogue.token_lengths
        tokens = int(sum(lengths[rows].sum() for rows in parts))
        with progress(
            "Reading news items", tokens, 100_000, lambda speed: f"{speed:,.0f} tokens/s"
        ) as advance:
            for rows in filter(len, parts):
                keys = b"".join(catalogue.text_hashes(rows))
                with building(base) as folder:
                    values = NpyWriter(folder / "values.npy", self.bits, self.hidden)
                    for found in islice(blocks, len(rows.split(NEWS_PER_PASS))):
                        values.write(found)
                        advance(len(found))
                    values.close()
                    np.save(folder / "lengths.npy", lengths[rows].numpy())
                    np.save(
                        folder / "keys.npy", np.frombuffer(keys, np.uint8).reshape(-1, HASH_BYTES)
                    )
                    seal(folder, base / (self.prefix + hashlib.sha256(keys).hexdigest()[:16]))

    def _folders(self) -> list[Path]:
        bases = filter(Path.is_dir, cache_folders(self.root))
        folders = (path for base in bases for path in sorted(base.glob(f"{self.prefix}*")))
        return [folder for folder in folders if is_intact(folder)]


def _load(folder: Path) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64]] | None:
    """Return a part's states, the hashes of its texts, and the offsets of each text's states.

    None if a file is damaged.
    """
    try:
        keys, lengths = np.load(folder / "keys.npy"), np.load(folder / "lengths.npy")
        values = np.load(folder / "values.npy", mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    whole = keys.shape == (len(lengths), HASH_BYTES) and lengths.ndim == 1 and (lengths > 0).all()
    return (values, keys, to_offsets(lengths)) if whole else None


def distinct_rows(catalogue: Catalogue) -> Tensor:
    """Return one catalogue row for each distinct token sequence, shortest first."""
    rows = torch.arange(len(catalogue.first))
    distinct = rows[(catalogue.first == rows) & (rows >= FIRST_NEWS)]
    return distinct[catalogue.token_lengths[distinct].argsort(stable=True)]
