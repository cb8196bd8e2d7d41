"""Freed memory is kept for the next step, where the C library can do that; nothing else grows."""

import os
import subprocess
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


GROWTH = """
import ctypes
import os
import subprocess
import sys

import torch

from newsrec.training.hardware.heap import forget_shapes

class Usage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]  # h: bytes in use

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Usage

forget_shapes()
before = 0
for size in range(1, 1001):
    torch.nn.functional.gelu(torch.zeros(size, 16))
    if size == 100:  # libraries are loaded by now
        before = libc.mallinfo2().h
print(libc.mallinfo2().h - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_process_does_not_grow_with_every_new_shape():
    # 14 MB without the limit, with the oneDNN of torch 2.13.
    environment = {name: value for name, value in os.environ.items() if name != heap.PRIMITIVES}
    grown = subprocess.check_output([sys.executable, "-c", GROWTH], env=environment)
    assert int(grown) < 1 << 20


def test_a_users_limit_of_shapes_is_left_alone(monkeypatch):
    monkeypatch.setenv(heap.PRIMITIVES, "7")
    heap.forget_shapes()
    assert os.environ[heap.PRIMITIVES] == "7"
    monkeypatch.delenv(heap.PRIMITIVES)
    heap.forget_shapes()
    assert os.environ[heap.PRIMITIVES] == "32"
