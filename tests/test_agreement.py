"""The first process decides for all, here threads with a common store."""

import os
import threading
import time

import pytest
from test_team import in_threads
from torch import distributed

from newsrec.errors import UserError
from newsrec.training.processes import agreement, together, waiting
from newsrec.training.processes.agreement import decided_by_first

OWN = threading.local()
"""The rank of a thread that stands for a process."""


@pytest.fixture
def store(monkeypatch):
    """The store of threads that stand for processes; silence is noticed after 1 s."""
    store = distributed.HashStore()
    monkeypatch.setattr(agreement, "_meeting_place", lambda num_nodes: ("host", 1, True))
    monkeypatch.setattr(agreement, "_store", lambda *place: store)
    monkeypatch.setattr(agreement, "POLL", 0.01)
    monkeypatch.setattr(agreement, "SILENCE", 1.0)  # a busy machine may stop a thread for a while
    monkeypatch.setattr(agreement, "is_first_process", lambda: OWN.rank == 0)
    monkeypatch.setattr(agreement, "PATIENCE", agreement.PATIENCE / 500)
    # What a decision leaves for processes that Lightning starts goes with the test.
    monkeypatch.setattr(agreement.os, "environ", dict(os.environ))
    return store


def decided(decide, ranks=(0, 1, 2)):
    def work(rank):
        OWN.rank = rank
        return decided_by_first("precision", decide)

    return in_threads(work, ranks)


@pytest.mark.usefixtures("store")
def test_the_others_wait_for_a_first_process_that_takes_longer_than_the_silence():
    calls = []

    def decide():
        calls.append(1)
        time.sleep(1.3 * agreement.SILENCE)
        return "bf16"

    assert decided(decide) == ["bf16"] * 3
    assert calls == [1]


def test_the_watch_of_a_whole_command_counts_as_a_sign_of_life(store):
    ended = threading.Event()

    def signs():
        for number in range(10**6):
            store.set(f"{agreement.SIGN}/0", str(number))
            if ended.wait(0.01):
                return

    thread = threading.Thread(target=signs)
    thread.start()
    timer = threading.Timer(
        1.2 * agreement.PATIENCE.total_seconds(), store.set, ("newsrec/precision/0", "fp32")
    )
    timer.start()
    assert decided(None, ranks=(1, 2)) == ["fp32"] * 2
    ended.set()
    thread.join()


@pytest.mark.parametrize("sign", ["newsrec/precision/0/alive", "none"])
def test_a_first_process_that_was_killed_ends_the_others(store, sign):
    store.set(sign, "7")  # a last sign, or none at all
    start = time.monotonic()
    errors = decided(None, ranks=(1, 2))
    assert time.monotonic() - start < 10
    limit = "1" if sign != "none" else "1.2"
    for error in errors:
        assert isinstance(error, UserError)
        assert "The first process did not send its precision through host:1" in str(error)
        assert f"no sign of life for {limit} s" in str(error)


@pytest.mark.usefixtures("store")
def test_a_decision_that_fails_ends_all_with_its_signs():
    def decide():
        raise OSError("no disk")

    first, *others = decided(decide)
    assert str(first) == "no disk"
    assert all("first process failed before it chose the precision" in str(e) for e in others)
    assert not [t for t in threading.enumerate() if t.name == "alive"]


def test_processes_meet_before_they_form_their_group(store, monkeypatch):
    monkeypatch.setattr(together, "connect_store", lambda: store)
    monkeypatch.setattr(together, "_watching", [together._Watch(0, 3)])
    monkeypatch.setattr(together, "early_rank", lambda: (OWN.rank, 3))
    come = []

    class Strategy:
        def setup_environment(self):
            assert len(come) == 3

        def setup(self, trainer):
            assert trainer.strategy is self

    class Trainer:
        world_size = 3

        def __init__(self):
            self.strategy = Strategy()

    def work(rank):
        OWN.rank = rank
        trainer = Trainer()
        waiting.wait_in_trainer(trainer)
        time.sleep(0.05 * rank)
        come.append(rank)
        trainer.strategy.setup_environment()
        trainer.strategy.setup(trainer)
        return rank

    assert in_threads(work, range(3)) == [0, 1, 2]


def test_outside_a_command_of_several_processes_nobody_waits(monkeypatch):
    assert together.early_team().size == 1
    monkeypatch.setattr(together, "early_rank", lambda: (1, 3))
    assert together.early_team().size == 1  # without ``fail_together_from_the_start``
