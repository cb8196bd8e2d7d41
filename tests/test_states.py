"""States beside the data: what is kept, found again, added, and never believed."""

import contextlib
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data import FIRST_NEWS
from newsrec.data import states as module
from newsrec.data.batch import Catalogue
from newsrec.data.states import StateStore, TokenStates, distinct_rows
from newsrec.data.store import recheck
from newsrec.errors import UserError

HIDDEN = 3
TITLES = [[2, 17, 40, 3], [2, 9, 3], [2, 33, 8, 51, 12, 60, 3], [2, 9, 3], [2, 3], [2, 44, 3]]


def made_catalogue(titles, width=10):
    rows = [[]] * FIRST_NEWS + [list(title) for title in titles]
    token_ids = torch.zeros(len(rows), width, dtype=torch.int32)
    for row, tokens in enumerate(rows):
        token_ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    first = [i if i < FIRST_NEWS else rows.index(tokens) for i, tokens in enumerate(rows)]
    return Catalogue(token_ids, torch.tensor([len(r) for r in rows]), torch.tensor(first))


def value(tokens):
    """States that tell token and position, so that a mistake in either shows."""
    tokens = torch.as_tensor(tokens, dtype=torch.float32)
    return torch.stack([tokens, torch.arange(len(tokens)), torch.ones(len(tokens))], dim=1)


class Computer:
    """Computes ``value`` of a catalogue's news items, and remembers of which."""

    def __init__(self, catalogue, fail_after=None):
        self.catalogue = catalogue
        self.rows = []
        self.fail_after = fail_after

    def __call__(self, rows):
        if self.fail_after is not None and len(self.rows) >= self.fail_after:
            raise KeyboardInterrupt
        self.rows += rows.tolist()
        c = self.catalogue
        return torch.cat([value(c.token_ids[r, : c.token_lengths[r]]) for r in rows.tolist()])


def store_of(root, key="plm", precision="fp32"):
    return StateStore(root, key, HIDDEN, precision)


def assert_right(states, catalogue):
    for row in range(len(catalogue.first)):
        tokens = catalogue.token_ids[row, : catalogue.token_lengths[row]]
        assert torch.equal(states.take(torch.tensor([row])).float(), value(tokens))


@pytest.fixture
def small_parts(monkeypatch):
    """One news item a pass, and a part for every 60 bytes: five tokens."""
    monkeypatch.setattr(module, "NEWS_PER_PASS", 1)
    monkeypatch.setattr(module, "PART_BYTES", 60)


def parts(root):
    return sorted((root / ".newsrec").glob("states-*"))


def test_states_are_computed_once_for_each_distinct_text_and_then_read(tmp_path):
    catalogue = made_catalogue(TITLES)
    compute = Computer(catalogue)
    for _ in range(2):
        states = store_of(tmp_path).find_or_compute(catalogue, compute)
        assert_right(states, catalogue)
    assert compute.rows == distinct_rows(catalogue).tolist() == [6, 3, 7, 2, 4]  # shortest first
    assert sum(len(np.load(folder / "values.npy")) for folder in parts(tmp_path)) == 19


@pytest.mark.usefixtures("small_parts")
def test_states_in_many_parts_are_taken_as_from_one(tmp_path):
    catalogue = made_catalogue(TITLES)
    states = store_of(tmp_path).find_or_compute(catalogue, Computer(catalogue))
    assert len(parts(tmp_path)) > 2
    assert_right(states, catalogue)
    rows = torch.randint(len(catalogue.first), (50,), generator=torch.Generator().manual_seed(0))
    tokens = [catalogue.token_ids[r, : catalogue.token_lengths[r]] for r in rows.tolist()]
    assert torch.equal(states.take(rows), torch.cat([value(t) for t in tokens]))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), max_size=12),
    st.lists(st.integers(0, 100), max_size=20),
    st.integers(12, 200),
)
def test_any_rows_of_any_catalogue_come_back(tmp_path_factory, titles, rows, part_bytes):
    root = tmp_path_factory.mktemp("states")
    catalogue = made_catalogue(titles, width=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_BYTES", part_bytes)
        states = store_of(root).find_or_compute(catalogue, Computer(catalogue))
    asked = torch.tensor([row % len(catalogue.first) for row in rows], dtype=torch.int64)
    tokens = [catalogue.token_ids[r, : catalogue.token_lengths[r]] for r in asked.tolist()]
    expected = torch.cat([value(t) for t in [*tokens, []]])
    assert torch.equal(states.take(asked), expected)
    shutil.rmtree(root)


def test_bf16_halves_the_disk_and_rounds(tmp_path):
    catalogue = made_catalogue([[2, 257, 3], [1000, 1001]])
    found = {
        precision: store_of(tmp_path, precision=precision).find_or_compute(
            catalogue, Computer(catalogue)
        )
        for precision in ("fp32", "bf16")
    }
    rows = torch.tensor([2, 3])
    exact, rounded = (found[name].take(rows) for name in ("fp32", "bf16"))
    assert torch.equal(rounded, exact.bfloat16())
    assert not torch.equal(rounded.float(), exact)  # 257 and 1001 have no such neighbour
    assert found["fp32"].exact
    assert not found["bf16"].exact
    sizes = [np.load(folder / "values.npy").nbytes for folder in parts(tmp_path)]
    assert sorted(sizes) == [5 * HIDDEN * 2, 5 * HIDDEN * 4]


def test_another_plm_or_precision_finds_nothing(tmp_path):
    catalogue = made_catalogue(TITLES)
    store_of(tmp_path).find_or_compute(catalogue, Computer(catalogue))
    for other in (store_of(tmp_path, "other"), store_of(tmp_path, precision="bf16")):
        _, missing = other.read(catalogue)
        assert missing.tolist() == distinct_rows(catalogue).tolist()


def test_new_news_are_added_and_old_ones_not_computed_again(tmp_path):
    old = made_catalogue(TITLES)
    store_of(tmp_path).find_or_compute(old, Computer(old))
    # news items come in between, some go, and titles may be longer now
    new = made_catalogue([[7, 8], *TITLES[2:], [5, 6, 5]], width=30)
    compute = Computer(new)
    assert_right(store_of(tmp_path).find_or_compute(new, compute), new)
    assert [new.token_ids[row, 0].item() for row in compute.rows] == [7, 5]
    assert_right(store_of(tmp_path).find_or_compute(old, Computer(old, fail_after=0)), old)


@pytest.mark.usefixtures("small_parts")
def test_a_run_that_was_stopped_goes_on_behind_its_last_whole_part(tmp_path):
    catalogue = made_catalogue(TITLES)
    stopped = Computer(catalogue, fail_after=3)
    with pytest.raises(KeyboardInterrupt):
        store_of(tmp_path).find_or_compute(catalogue, stopped)
    kept = sum(len(np.load(folder / "lengths.npy")) for folder in parts(tmp_path))
    assert 0 < kept <= 3
    compute = Computer(catalogue)
    assert_right(store_of(tmp_path).find_or_compute(catalogue, compute), catalogue)
    assert len(compute.rows) == 5 - kept


@pytest.mark.usefixtures("small_parts")
def test_what_a_killed_process_leaves_is_not_believed(tmp_path):
    catalogue = made_catalogue(TITLES)

    class Killed(Computer):
        def __call__(self, rows):
            if len(self.rows) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(rows)

    child = os.fork()
    if not child:
        store_of(tmp_path).find_or_compute(catalogue, Killed(catalogue))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list((tmp_path / ".newsrec").glob(".building-*"))
    compute = Computer(catalogue)
    assert_right(store_of(tmp_path).find_or_compute(catalogue, compute), catalogue)
    assert 0 < len(compute.rows) < 5
    assert not list((tmp_path / ".newsrec").glob(".building-*"))


def test_a_shortened_array_is_computed_again(tmp_path):
    catalogue = made_catalogue(TITLES)
    store_of(tmp_path).find_or_compute(catalogue, Computer(catalogue))
    path = parts(tmp_path)[0] / "values.npy"
    path.write_bytes(path.read_bytes()[:-4])
    compute = Computer(catalogue)
    assert_right(store_of(tmp_path).find_or_compute(catalogue, compute), catalogue)
    assert len(compute.rows) == 5


@pytest.mark.parametrize("name", ["keys.npy", "lengths.npy", "values.npy"])
def test_a_file_that_cannot_be_read_is_computed_again(tmp_path, name):
    catalogue = made_catalogue(TITLES)
    store_of(tmp_path).find_or_compute(catalogue, Computer(catalogue))
    path = parts(tmp_path)[0] / name
    path.write_bytes(b"garbage!" + path.read_bytes()[8:])  # of the size it had
    compute = Computer(catalogue)
    assert_right(store_of(tmp_path).find_or_compute(catalogue, compute), catalogue)
    assert len(compute.rows) == 5
    assert len(parts(tmp_path)) == 1


def test_what_another_process_computes_meanwhile_is_not_computed_again(tmp_path, monkeypatch):
    catalogue = made_catalogue(TITLES)
    lock = module.build_lock

    @contextlib.contextmanager
    def slow_lock(base):
        monkeypatch.setattr(module, "build_lock", lock)
        store_of(tmp_path).find_or_compute(catalogue, Computer(catalogue))
        with lock(base):
            yield

    monkeypatch.setattr(module, "build_lock", slow_lock)
    never = Computer(catalogue, fail_after=0)
    assert_right(store_of(tmp_path).find_or_compute(catalogue, never), catalogue)


def test_a_changed_byte_is_found_by_hashing_again(mind_dir):
    catalogue = made_catalogue(TITLES)
    store_of(mind_dir).find_or_compute(catalogue, Computer(catalogue))
    path = parts(mind_dir)[0] / "values.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert recheck(mind_dir) == [str(path)]
    compute = Computer(catalogue)
    assert_right(store_of(mind_dir).find_or_compute(catalogue, compute), catalogue)
    assert len(compute.rows) == 5


def test_states_of_another_shape_are_refused(tmp_path):
    catalogue = made_catalogue(TITLES)
    store_of(tmp_path).find_or_compute(catalogue, Computer(catalogue))
    wider = store_of(tmp_path)
    wider.hidden = 5
    with pytest.raises(UserError, match=r"shape \[19, 3\]; this PLM's are \[19, 5\].*Remove"):
        wider.read(catalogue)


def test_too_little_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    catalogue = made_catalogue(TITLES)
    usage = shutil.disk_usage(tmp_path)._replace(free=19 * HIDDEN * 4 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    compute = Computer(catalogue)
    with pytest.raises(UserError, match=r"5 news items need 0.0 MiB.*frozen_states to bf16.*none"):
        store_of(tmp_path).find_or_compute(catalogue, compute)
    assert not compute.rows
    assert not parts(tmp_path)


def test_a_read_only_folder_is_added_to_in_the_users_cache(tmp_path, monkeypatch):
    old = made_catalogue(TITLES[:3])
    root = tmp_path / "data"
    root.mkdir()
    store_of(root).find_or_compute(old, Computer(old))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    locked = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(root) not in str(path) and locked(path, mode)
    )
    new = made_catalogue(TITLES)
    compute = Computer(new)
    assert_right(store_of(root).find_or_compute(new, compute), new)
    assert len(compute.rows) == 2
    assert len(parts(root)) == 1
    assert list((tmp_path / "cache").rglob("values.npy"))


def test_no_news_need_no_states(tmp_path):
    nothing = made_catalogue([])
    states = store_of(tmp_path).find_or_compute(nothing, Computer(nothing))
    for rows in ([], [0, 1], [0]):
        taken = states.take(torch.tensor(rows, dtype=torch.int64))
        assert taken.shape == (0, HIDDEN)


def test_what_is_taken_can_be_changed_without_harm(tmp_path):
    catalogue = made_catalogue(TITLES)
    states = store_of(tmp_path).find_or_compute(catalogue, Computer(catalogue))
    states.take(torch.tensor([3, 2])).fill_(-1)
    assert_right(states, catalogue)
    assert isinstance(states, TokenStates)
