"""States of a PLM's frozen layers: constants, so they are computed once and kept beside the data.

They lie in sealed folders of a data folder's cache (see ``cache.py``), a part of the stories in
each. A part's name holds what shaped its states (the frozen weights, the layer, the precision) and
a hash of its texts: what a killed process has finished is kept and the rest computed, and stories
that are new since then are added in parts of their own.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.cache import (
    build_lock,
    building,
    cache_folders,
    digest,
    is_intact,
    seal,
    writable_folder,
)
from newsrec.data.npy import NpyWriter
from newsrec.data.ragged import to_offsets
from newsrec.errors import UserError

STATES_FORMAT = 2
PRECISIONS = ("bf16", "fp32", "none")
"""How states are kept; with none the whole PLM runs in every step."""
STORED = {"bf16": (torch.bfloat16, np.int16), "fp32": (torch.float32, np.float32)}
"""What they are in memory, and in a file: NumPy has no bfloat16, so its bits are integers there."""
KEY = 16
"""Bytes of the hash that a text is found by."""
PART_BYTES = 256 << 20
"""Size at which a part is sealed: at most so much is lost when a process is killed."""
STORIES_PER_PASS = 1024

log = logging.getLogger(__name__)


class TokenStates:
    """States of every story's real tokens, read where they lie.

    Frozen layers run without dropout, so training on these states gives the loss of training
    through the whole PLM, without its cost.

    Args:
        parts: States of some texts' real tokens, joined ``[tokens, hidden]`` each.
        part: Which of them holds a story's states ``[news]``.
        starts: Where they begin there ``[news]``.
        lengths: Tokens of each story, on the CPU ``[news]``.
    """

    def __init__(
        self, parts: Sequence[Tensor], part: Tensor, starts: Tensor, lengths: Tensor
    ) -> None:
        self.parts = list(parts)
        self.part = part
        self.starts = starts
        self.lengths = lengths

    @property
    def exact(self) -> bool:
        """Whether the states are kept as they were computed, in float32."""
        return all(part.dtype == torch.float32 for part in self.parts)

    def take(self, rows: Tensor) -> Tensor:
        """Return the states of some stories' real tokens, joined ``[tokens, hidden]``."""
        lengths = self.lengths[rows]
        ends = lengths.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        places = (self.starts[rows] - ends + lengths).repeat_interleave(lengths)
        places += torch.arange(total)
        if len(self.parts) == 1:
            return self.parts[0][places]
        owner = self.part[rows].repeat_interleave(lengths)
        taken = self.parts[0].new_empty(total, self.parts[0].shape[1])
        for number, values in enumerate(self.parts):
            here = owner == number
            taken[here] = values[places[here]]
        return taken


class RunStates:
    """The states of a run, once there are any.

    A schedule that counts its steps has Lightning build the training loader before the model is on
    its device, so before states can be computed. The loader's data set asks here for each batch.
    """

    def __init__(self, states: TokenStates | None = None) -> None:
        self._states = states

    def set(self, states: TokenStates | None) -> None:
        """Use these states from now on, or none."""
        self._states = states

    def get(self) -> TokenStates | None:
        """Return the states; None where they were not found yet or are not used."""
        return self._states


class _Place(NamedTuple):
    part: int
    start: int


class StateStore:
    """The parts of one PLM's states in a data folder's cache.

    Args:
        root: The data folder.
        plm_key: Hash of what computes the states: see ``CutPlm.key``.
        hidden: Size of a state.
        precision: bf16 or fp32.
    """

    def __init__(self, root: Path, plm_key: str, hidden: int, precision: str) -> None:
        self.root = root
        self.hidden = hidden
        self.dtype, self.bits = STORED[precision]
        self.prefix = f"states-{digest(STATES_FORMAT, plm_key, hidden, precision)}-"

    def read(self, catalogue: Catalogue) -> tuple[TokenStates, Tensor]:
        """Return the states of a catalogue, and the rows of the distinct stories that lack them.

        States may be taken of the other rows only.
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
                    f"[{ends[-1]}, {self.hidden}]. Remove the folder: they are computed again."
                )
            parts.append(torch.from_numpy(values).view(self.dtype))
            for key, start in zip(keys, ends.tolist(), strict=False):
                places[key.tobytes()] = _Place(len(parts) - 1, start)
        rows = distinct_rows(catalogue)
        found = [places.get(key, _Place(-1, 0)) for key in text_keys(catalogue, rows)]
        part, starts = (torch.zeros(len(catalogue.first), dtype=torch.int64) for _ in range(2))
        part[rows] = torch.tensor([place.part for place in found], dtype=torch.int64)
        starts[rows] = torch.tensor([place.start for place in found], dtype=torch.int64)
        part, starts = part[catalogue.first], starts[catalogue.first]
        used = sorted({place.part for place in found} - {-1})
        if len(used) == 1:  # the usual case, which take() reads fastest
            parts, part = [parts[used[0]]], part.clamp(max=0)
        missing = rows[part[rows] < 0]
        return TokenStates(parts, part, starts, catalogue.token_lengths), missing

    def find_or_compute(
        self, catalogue: Catalogue, compute: Callable[[Tensor], Tensor]
    ) -> TokenStates:
        """Return the states of a catalogue, after computing those that are not there yet.

        Args:
            catalogue: Every story's tokens.
            compute: Returns the states of some rows' real tokens, joined ``[tokens, hidden]``.

        Raises:
            UserError: If the disk has too little space.
        """
        states, missing = self.read(catalogue)
        if not len(missing):
            return states
        base = writable_folder(self.root)
        with build_lock(base):
            for folder in self._folders():
                if _load(folder) is None:
                    log.info("%s is damaged: its states are computed again", folder)
                    shutil.rmtree(folder, ignore_errors=True)  # another's is not ours to remove
            states, missing = self.read(catalogue)  # another process may have been faster
            if len(missing):
                self._compute(base, catalogue, missing, compute)
                states, missing = self.read(catalogue)
        assert not len(missing)
        return states

    def _compute(
        self,
        base: Path,
        catalogue: Catalogue,
        missing: Tensor,
        compute: Callable[[Tensor], Tensor],
    ) -> None:
        from newsrec.console import progress

        lengths = catalogue.token_lengths
        per_token = self.hidden * self.dtype.itemsize
        tokens = int(lengths[missing].sum())
        need, free = tokens * per_token, shutil.disk_usage(base).free
        room = f"{need / 2**20:,.1f} MiB in {base}"
        if need > free:
            half = "bf16 (half as much) or " if self.dtype == torch.float32 else ""
            raise UserError(
                f"The frozen layers' states of {len(missing):,} stories need {room}, where "
                f"{free / 2**20:,.1f} MiB are free. Free some, or set --data.frozen_states to "
                f"{half}none (the whole PLM runs in every step)."
            )
        log.info(
            "frozen layers of the PLM: computing %s stories once, %s", f"{len(missing):,}", room
        )
        ends = lengths[missing].cumsum(0) * per_token
        with progress(
            "Reading stories", tokens, 100_000, lambda speed: f"{speed:,.0f} word pieces/s"
        ) as advance:
            for rows in missing.split(torch.bincount((ends - 1) // PART_BYTES).tolist()):
                if not len(rows):
                    continue
                keys = b"".join(text_keys(catalogue, rows))
                with building(base) as folder:
                    values = NpyWriter(folder / "values.npy", self.bits, self.hidden)
                    for block in rows.split(STORIES_PER_PASS):
                        found = compute(block).to(self.dtype).cpu().contiguous()
                        values.write(found.view(torch.uint8).numpy().view(self.bits))
                        advance(len(found))
                    values.close()
                    np.save(folder / "lengths.npy", lengths[rows].numpy())
                    np.save(folder / "keys.npy", np.frombuffer(keys, np.uint8).reshape(-1, KEY))
                    seal(folder, base / (self.prefix + hashlib.sha256(keys).hexdigest()[:16]))

    def _folders(self) -> list[Path]:
        bases = filter(Path.is_dir, cache_folders(self.root))
        folders = (path for base in bases for path in sorted(base.glob(f"{self.prefix}*")))
        return [folder for folder in folders if is_intact(folder)]


def _load(folder: Path) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64]] | None:
    """Return a part's states, its texts' hashes and where each begins, and the end.

    None if a file is damaged.
    """
    try:
        keys, lengths = np.load(folder / "keys.npy"), np.load(folder / "lengths.npy")
        values = np.load(folder / "values.npy", mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    whole = keys.shape == (len(lengths), KEY) and lengths.ndim == 1 and (lengths > 0).all()
    return (values, keys, to_offsets(lengths)) if whole else None


def distinct_rows(catalogue: Catalogue) -> Tensor:
    """Return the catalogue's rows, one of each set with equal tokens, shortest first."""
    rows = torch.arange(len(catalogue.first))
    distinct = rows[(catalogue.first == rows) & (rows >= FIRST_NEWS)]
    return distinct[catalogue.token_lengths[distinct].argsort(stable=True)]


def text_keys(catalogue: Catalogue, rows: Tensor) -> list[bytes]:
    """Return a hash of the real tokens of each of some rows."""
    token_ids, lengths = catalogue.token_ids.numpy(), catalogue.token_lengths.tolist()
    return [
        hashlib.blake2b(token_ids[row, : lengths[row]].tobytes(), digest_size=KEY).digest()
        for row in rows.tolist()
    ]
