"""Freed memory is kept for the next step, where the C library can do that."""

import sys

import pytest
import torch

from newsrec.training.hardware import heap


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_steps_find_the_memory_of_the_step_before(monkeypatch):
    for name in heap.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    if not heap.keep_freed_memory():
        pytest.skip("the C library has no such option")

    import resource  # not on Windows

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.zeros(1 << 20) for _ in range(8)]  # 32 MiB, 8,192 pages
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < 800


@pytest.mark.parametrize("name", heap.SETTINGS)
def test_a_users_setting_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not heap.keep_freed_memory()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert not heap.keep_freed_memory()
