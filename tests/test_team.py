"""Processes that divide work, here threads with a common store; the states that they compute."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from forks import started
from hypothesis import given, settings
from hypothesis import strategies as st
from test_states import TITLES, Computer, assert_right, made_catalogue, store_of
from torch import distributed

from newsrec.data import states as module
from newsrec.data.team import Team, divide
from newsrec.errors import UserError
from newsrec.training.processes import together, waiting


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 9))
def test_pieces_are_divided_evenly_up_to_any_piece(sizes, processes):
    owners = divide(sizes, processes)
    assert len(owners) == len(sizes)
    loads = np.zeros(processes, int)
    for owner, size in zip(owners, sizes, strict=True):
        loads[owner] += size  # an owner that does not exist would raise
        assert loads.max() - loads.min() <= max(sizes)
    assert loads.sum() == sum(sizes)


def test_later_pieces_do_not_change_who_takes_earlier_ones():
    sizes = [5, 3, 3, 8, 1, 1, 9]
    assert divide(sizes, 3) == [0, 1, 2, 1, 2, 2, 0]
    assert [divide(sizes[:n], 3) for n in range(7)] == [divide(sizes, 3)[:n] for n in range(7)]


def teams(size):
    store = distributed.HashStore()
    return [Team(distributed.PrefixStore("team", store), rank, size) for rank in range(size)]


def in_threads(work, *each):
    """Call ``work`` in a thread for each value; return the results, or the errors raised."""
    with ThreadPoolExecutor(len(each[0])) as pool:
        done = [pool.submit(work, *given) for given in zip(*each, strict=True)]
    return [one.exception() or one.result() for one in done]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_get_the_values_of_the_first_and_agree_only_if_all_say_yes(size):
    def work(team):
        said = [team.share({"turn": turn} if team.rank == 0 else None) for turn in range(3)]
        votes = [team.all_agree(True), team.all_agree(team.rank != size - 1), team.all_agree(True)]
        return said, votes

    assert (
        in_threads(work, teams(size))
        == [([{"turn": 0}, {"turn": 1}, {"turn": 2}], [True, False, True])] * size
    )


def test_no_process_leaves_a_meeting_before_all_are_there():
    come = []

    def work(team):
        for meeting in range(3):
            time.sleep(0.02 * ((team.rank + meeting) % 3))
            come.append(meeting)
            team.meet()
            assert come.count(meeting) == 3
        return True

    assert in_threads(work, teams(3)) == [True] * 3


def test_a_failure_ends_the_waits_of_the_others():
    def work(team):
        with team.failing_together():
            if team.rank == 1:
                raise OSError("disk on fire")
            team.hear("what is never told")

    first, failed, third = in_threads(work, teams(3))
    assert isinstance(failed, OSError)
    assert (str(first), str(third)) == ("OSError: disk on fire",) * 2
    assert isinstance(first, UserError)


def test_a_lost_store_raises_a_user_error():
    def gone(*_):
        raise RuntimeError("Connection reset by peer\n at TCPStore.cpp")

    team = Team(SimpleNamespace(add=gone, compare_set=gone), 1, 2)
    with pytest.raises(UserError, match=r"first process was killed.*Connection reset by peer\)"):
        team.meet()
    with pytest.raises(KeyError), team.failing_together():
        raise KeyError


# states


@pytest.fixture
def small_parts(monkeypatch):
    """Two news items in each pass; a part ends at 120 bytes, which are ten tokens."""
    monkeypatch.setattr(module, "NEWS_PER_PASS", 2)
    monkeypatch.setattr(module, "PART_BYTES", 120)


MORE = [*TITLES, *([7, n, *range(n % 6 + 1)] for n in range(30))]


def content(root):
    """Return the bytes of all files below a folder, by name, without lock files."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def computed(root, size, make=Computer, catalogue=None):
    """Let the processes of a team compute the states; return what each computed, or its error."""
    catalogue = catalogue or made_catalogue(MORE)
    root.mkdir(exist_ok=True)

    def work(team):
        compute = make(catalogue)
        store_of(root).find_or_compute(catalogue, compute, team)
        return compute.rows

    return in_threads(work, teams(size))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_stored_bytes_do_not_depend_on_the_number_of_processes(tmp_path, size):
    (alone,) = computed(tmp_path / "one", 1)
    rows = computed(tmp_path / "many", size)
    assert content(tmp_path / "one") == content(tmp_path / "many") != {}
    assert sorted(chain(*rows)) == sorted(alone)  # each text once
    assert all(rows)


@pytest.mark.usefixtures("small_parts")
def test_no_process_computes_stored_states_again(tmp_path):
    old = made_catalogue(MORE[:20])
    computed(tmp_path, 2, catalogue=old)
    rows = computed(tmp_path, 3)
    new = module.distinct_rows(made_catalogue(MORE)).tolist()
    assert sorted(chain(*rows)) == sorted(row for row in new if row >= len(old.first))
    assert computed(tmp_path, 3) == [[], [], []]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failing_process_stops_all_and_leaves_no_incomplete_file(tmp_path, failing):
    numbers = iter(range(3))

    class Failing(Computer):
        def __init__(self, catalogue):
            super().__init__(catalogue)
            self.number = next(numbers)

        def __call__(self, rows):
            if self.number == failing and len(self.rows) >= 4:
                raise UserError("no room")
            return super().__call__(rows)

    assert [str(error) for error in computed(tmp_path, 3, Failing)] == ["no room"] * 3
    assert not list((tmp_path / ".newsrec").glob(".building-*"))
    kept, catalogue = content(tmp_path), made_catalogue(MORE)
    missing = store_of(tmp_path).read(catalogue)[1].tolist()
    again = computed(tmp_path, 3)
    assert kept.items() < content(tmp_path).items()  # whole parts stay
    assert_right(store_of(tmp_path).read(catalogue)[0], catalogue)
    assert sorted(chain(*again)) == sorted(missing)


def with_little_room(says, root, port):
    """Run the second of two processes, on a disk with room for 20 bytes of a file."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
    try:
        catalogue = made_catalogue(MORE)
        store = distributed.TCPStore("127.0.0.1", port, is_master=False)
        store_of(root).find_or_compute(catalogue, Computer(catalogue), Team(store, 1, 2))
    except UserError as error:
        says.send(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits a forked process")
@pytest.mark.usefixtures("small_parts")
def test_all_processes_report_the_full_disk_of_one(tmp_path):
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other, hears = started(with_little_room, tmp_path, store.port)
    catalogue = made_catalogue(MORE)
    with pytest.raises(UserError, match="File too large; nothing was kept") as first:
        store_of(tmp_path).find_or_compute(catalogue, Computer(catalogue), Team(store, 0, 2))
    assert hears.recv() == str(first.value)
    other.join()
    assert not list((tmp_path / ".newsrec").glob(".building-*"))


def test_only_processes_that_share_the_data_folder_divide_the_work(tmp_path, monkeypatch):
    store = distributed.HashStore()
    monkeypatch.setattr(waiting, "watched_store", lambda: store)

    def team_of(rank, root):
        trainer = SimpleNamespace(
            global_rank=rank, local_rank=rank % 2, node_rank=rank // 2, world_size=4, num_nodes=2
        )
        return waiting.team_beside(trainer, root)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    shared = in_threads(team_of, range(4), [tmp_path / "a"] * 4)
    assert [(team.rank, team.size) for team in shared] == [(n, 4) for n in range(4)]
    assert "4 processes of 2 machines" in shared[0].described
    own = in_threads(team_of, range(4), [tmp_path / "a"] * 2 + [tmp_path / "b"] * 2)
    assert [(team.rank, team.size) for team in own] == [(0, 2), (1, 2)] * 2
    assert "share no data folder" in own[0].described
    assert in_threads(Team.share, own, ["one", None, "other", None]) == ["one"] * 2 + ["other"] * 2
    assert content(tmp_path) == {}


def test_a_failure_of_another_process_leaves_no_file_beside_the_data(tmp_path):
    team, _ = teams(2)
    team.store.set("failed", "ValueError: no data here")
    with pytest.raises(UserError, match="no data here"):
        waiting._all_see(team, tmp_path)
    assert not [*tmp_path.rglob(".shared-*")]


# processes that were killed


def watches(monkeypatch, sign):
    """Let process 0 watch process 1, which gave a sign; return the exit codes of process 0."""
    store = distributed.HashStore()
    monkeypatch.setattr(together, "connect_store", lambda: store)
    monkeypatch.setattr(together, "POLL", 0.01)
    monkeypatch.setattr(together, "SILENCE", 0.1)
    ended = []
    store.set(f"{together.SIGN}/1", sign)
    watch = together._Watch(0, 2)

    def leave(code):
        ended.append(code)
        watch.stopped.set()

    monkeypatch.setattr(together.os, "_exit", leave)
    watch.start()
    watch.join(0.4)
    watch.stopped.set()
    watch.join(5)
    assert store.get(f"{together.SIGN}/0").decode() == together.LEFT
    return ended


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_of_this_machine_ends_the_run_with_a_message(monkeypatch, capsys):
    other = subprocess.Popen([shutil.which("sleep"), "60"])
    try:
        sign = f"7\n{together._id_space()}\n{other.pid}\nhost"
        assert watches(monkeypatch, sign) == []
        other.kill()  # not waited for, so its process id still exists
        time.sleep(0.1)
        assert watches(monkeypatch, sign) == [1]
    finally:
        other.kill()
        other.wait()
    assert "newsrec: error: process 1 on host was killed" in capsys.readouterr().err


def test_a_silent_process_of_another_machine_counts_as_killed(monkeypatch, capsys):
    assert watches(monkeypatch, f"7\nelsewhere\n{os.getpid()}\nhost") == [1]
    assert "process 1 on host was killed" in capsys.readouterr().err


def test_a_process_that_has_ended_well_does_not_count_as_killed(monkeypatch):
    assert watches(monkeypatch, together.LEFT) == []


def test_a_process_that_never_starts_ends_the_others(monkeypatch, capsys):
    store = distributed.HashStore()
    monkeypatch.setattr(together, "connect_store", lambda: store)
    monkeypatch.setattr(together, "POLL", 0.01)
    monkeypatch.setattr(together, "START", 0.1)
    ended = []
    monkeypatch.setattr(together.os, "_exit", lambda code: ended.append(code) or sys.exit())
    watch = together._Watch(0, 2)
    watch.start()
    watch.join(10)
    assert ended == [1]
    assert "newsrec: error: process 1 has not started within" in capsys.readouterr().err
