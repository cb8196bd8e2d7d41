"""Batches made one ahead are the same batches, errors included."""

import threading

import numpy as np
import pytest
import torch

from newsrec.data.datamodule import MindDataModule
from newsrec.data.loader import one_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("next-batch")]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_items_come_in_order_and_the_thread_ends(count):
    assert list(one_ahead(iter(range(count)))) == list(range(count))
    assert not threads()


def test_the_next_item_is_made_while_one_is_used():
    made, second = [], threading.Event()

    def items():
        for number in range(3):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert second.wait(10)
    assert list(ahead) == [1, 2]


def test_an_error_comes_in_its_place():
    def items():
        yield 1
        raise ValueError("damaged row")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="damaged row"):
        next(ahead)
    assert not threads()


def test_who_stops_early_leaves_no_thread():
    ahead = one_ahead(iter(range(100)))
    assert next(ahead) == 0
    ahead.close()
    assert not threads()


def test_an_interrupt_during_a_step_leaves_no_thread():
    """The next batch is still being made when the step is interrupted."""
    making, go_on = threading.Event(), threading.Event()

    def items():
        yield 1
        making.set()
        go_on.wait(10)
        yield 2

    def steps():
        for _ in one_ahead(items()):
            making.wait(10)
            go_on.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupt:
        steps()
    del interrupt  # it holds the generator, which ends the thread when it goes
    assert not threads()


def test_training_batches_are_the_same_ahead_or_not(mind_dir, plm_dir):
    batches = {}
    for ahead in (False, True):
        data = MindDataModule(str(mind_dir), plm=str(plm_dir), batch_size=8, seed=3)
        data.setup("fit")
        loader = data.train_dataloader()
        assert not loader.ahead  # no GPU here, so it is an option of the test
        loader.ahead = ahead
        batches[ahead] = list(loader)
    assert len(batches[True]) > 3
    for one, other in zip(batches[False], batches[True], strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None and b is None) or np.array_equal(
                torch.as_tensor(a), torch.as_tensor(b)
            )
