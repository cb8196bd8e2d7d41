"""How many threads a process takes of the cores, and when one is enough."""

import contextlib
import logging
import os

import pytest
import torch
import yaml
from checkpoints import train
from conftest import fit_options, refused
from torch.utils.data import DataLoader

from newsrec.__main__ import main
from newsrec.cores import usable_cores
from newsrec.errors import UserError
from newsrec.training.hardware import machine, threads
from newsrec.training.hardware.probe import LinearMap
from newsrec.training.hardware.threads import (
    SETTINGS,
    Threads,
    choose_threads,
    forget_threads,
    gain_of_many,
    is_busy,
    processes_here,
    set_threads,
)

MAPS = [LinearMap(16, 16, 1, 32, True)]


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No variable of a launcher, a cache for each test, and the number of threads put back."""
    monkeypatch.setattr(threads, "_set_here", set())
    for name in (
        *SETTINGS,
        "TORCHELASTIC_RUN_ID",
        "LOCAL_WORLD_SIZE",
        "SLURM_NTASKS_PER_NODE",
        "SLURM_CPUS_PER_TASK",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEWSREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def timed(monkeypatch):
    """Set how many times as fast many threads are than one; returns how many were compared."""

    def inject(*gains):
        compared = []

        def rounds(maps, number):
            compared.append(number)
            return [(1.0, 1 / gain) for gain in gains]

        monkeypatch.setattr(threads, "one_thread_and_many", rounds)
        return compared

    return inject


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),  # half a core
        ({"cpu.max": "900000 100000\n"}, 6),  # more than the affinity allows
        ({"cpu.max": "nonsense"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu.max": "max 100000", "a/cpu.max": "400000 100000", "a/b/cpu.max": "max 1"}, 4),
    ],
)
def test_cores_are_those_of_the_affinity_and_the_quota(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text("0::/a/b\n")
    assert usable_cores(tmp_path, tmp_path / "own") == expected


def test_cores_are_all_of_the_machines_where_there_is_no_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert usable_cores(tmp_path, tmp_path / "none") == 10


@pytest.mark.parametrize(
    ("devices", "environ", "expected"),
    [
        (1, {}, 1),
        (4, {}, 4),
        ("2", {}, 2),
        ([0, 3, 5], {}, 3),
        ("0,1", {}, 2),
        ("auto", {}, 1),
        (1, {"LOCAL_WORLD_SIZE": "8"}, 8),
        ("auto", {"SLURM_NTASKS_PER_NODE": "3"}, 3),
    ],
)
def test_processes_are_those_that_share_the_machine(devices, environ, expected):
    assert processes_here({"devices": devices, "accelerator": "cpu"}, environ) == expected


@pytest.mark.parametrize(
    ("devices", "accelerator", "expected"),
    [(-1, "gpu", 8), ("auto", "auto", 8), ("auto", "cuda", 8), ("auto", "cpu", 1), (2, "auto", 2)],
)
def test_all_gpus_are_as_many_processes(monkeypatch, devices, accelerator, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert processes_here({"devices": devices, "accelerator": accelerator}, {}) == expected


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (1, 1, 1)]
)
def test_processes_share_the_cores_unmeasured(timed, cores, processes, expected):
    compared = timed(9.0, 9.0)
    assert choose_threads(processes, lambda: MAPS, cores=cores).number == expected
    assert not compared


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([1.9] * 5, 4),
        ([1.11] * 5, 4),
        ([1.0] * 5, 1),
        ([1 / 30] * 5, 1),  # they spin at barriers
        ([1.9, 1.9, 0.01, 1.9, 1.9], 4),  # one outlier
        ([3.4, 5.0, 0.04, 0.11, 1.32], 1),  # they spin now and then
    ],
)
def test_one_thread_is_taken_where_more_are_no_faster(timed, gains, expected):
    compared = timed(*gains)
    chosen = choose_threads(1, lambda: MAPS, cores=4)
    assert chosen.number == expected
    assert "times as fast as 1" in chosen.why
    again = choose_threads(1, lambda: MAPS, cores=4)
    assert again.number == expected
    assert again.why == f"{chosen.why}, earlier"
    assert compared == [4]


def test_many_threads_gain_the_median_unless_they_lose_in_all():
    assert gain_of_many([(2.0, 1.0)] * 5) == 2.0
    assert gain_of_many([(2.0, 1.0)] * 4 + [(1.0, 90.0)]) == 2.0
    assert gain_of_many([(2.0, 1.0)] * 3 + [(1.0, 30.0)] * 2) == 7 / 33
    assert threads.LEAST_GAIN == 1.1


def test_a_busy_machine_is_measured_by_itself(timed, monkeypatch):
    timed(1.9, 1.9)
    assert choose_threads(1, lambda: MAPS, cores=4).number == 4
    compared = timed(0.1, 0.1)
    monkeypatch.setattr(os, "getloadavg", lambda: (4.0, 0.0, 0.0))
    assert choose_threads(1, lambda: MAPS, cores=4).number == 1
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    assert choose_threads(1, lambda: MAPS, cores=4).number == 4
    assert compared == [4]
    monkeypatch.delattr(os, "getloadavg")  # as on Windows
    assert not is_busy(4)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_environment_says_is_kept(monkeypatch, timed, name):
    compared = timed(0.1, 0.1)
    monkeypatch.setenv(name, "3")
    torch.set_num_threads(3)  # as torch reads it when it is imported
    assert choose_threads(2, lambda: MAPS, cores=8) == Threads(3, f"as {name} says")
    said = choose_threads(1, kept=2, cores=8).why
    assert said == f"as {name} says, 2 in the run so far"
    assert choose_threads(1, asked=5, cores=8).number == 5
    assert not compared


@pytest.mark.parametrize(
    ("processes", "set_to", "expected"), [("2", "1", 4), ("2", "3", 3), ("1", "1", 1)]
)
def test_torchruns_own_single_thread_is_no_wish(monkeypatch, caplog, processes, set_to, expected):
    caplog.set_level(logging.INFO, "newsrec")
    torch.set_num_threads(int(set_to))
    environ = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": processes, "OMP_NUM_THREADS": set_to}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    chosen = choose_threads(int(processes), cores=8)
    assert chosen.number == expected
    set_threads(chosen, int(processes))
    assert torch.get_num_threads() == expected
    if expected == 4:
        assert "4 cores for each of 2 processes; --threads sets another number" in caplog.text


def test_what_an_earlier_run_told_its_processes_is_no_wish(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")  # so that it is removed again in the end
    set_threads(choose_threads(2, cores=8), processes=2, say=False)
    assert os.environ["OMP_NUM_THREADS"] == "4"
    set_threads(choose_threads(4, cores=8), processes=4, say=False)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert choose_threads(1, cores=8).number == 8
    forget_threads()
    assert "OMP_NUM_THREADS" not in os.environ


def test_what_the_user_has_set_is_not_forgotten(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_threads(Threads(2, "as --threads says"), processes=2, say=False)
    forget_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def fail(*args, **kwargs):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.slow), True])
def test_after_fit_and_evaluate_the_environment_is_as_before(
    mind_dir, plm_dir, tmp_path, monkeypatch, fails
):
    checkpoint = train(tmp_path / "made", plm_dir)
    # As for two processes, without starting a second one.
    monkeypatch.setattr("newsrec.training.hardware.settle.processes_here", lambda trainer: 2)
    seen = []
    chosen = threads.set_threads

    def note(*args):
        chosen(*args)
        seen.append(os.environ.get("OMP_NUM_THREADS"))

    monkeypatch.setattr("newsrec.training.hardware.settle.set_threads", note)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    if fails:
        monkeypatch.setattr("newsrec.training.run.Run.train", fail)
        monkeypatch.setattr("newsrec.evaluation.scoring.score_split", fail)
    options = [*fit_options(mind_dir, plm_dir, tmp_path / "run"), "--baselines=false"]
    with pytest.raises(SystemExit) if fails else contextlib.nullcontext():
        main([*options, "--trainer.max_steps=1"])
    assert seen == ["1"]
    assert "OMP_NUM_THREADS" not in os.environ
    with pytest.raises(SystemExit) if fails else contextlib.nullcontext():
        main(["evaluate", f"--ckpt_path={checkpoint}", f"--data.root={mind_dir}", "--split=dev",
              f"--output={tmp_path / 'dev'}", "--trainer.accelerator=cpu",
              "--baselines=false"])  # fmt: skip
    assert seen == ["1", "1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_run_that_goes_on_keeps_its_threads_where_there_are_as_many_cores():
    assert choose_threads(1, kept=2, cores=4) == Threads(2, "as in the run so far")
    fewer = choose_threads(1, kept=8, cores=4)
    assert fewer.number == 4
    assert "had 8 so far, and there are fewer cores now" in fewer.why


def test_slurms_cores_for_a_task_are_not_divided_again(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert choose_threads(8, cores=6).number == 6


@pytest.mark.parametrize("asked", [0, -2])
def test_less_than_one_thread_is_refused(asked):
    with pytest.raises(UserError, match=f"--threads is {asked}; it must be at least 1"):
        choose_threads(1, asked=asked)


def test_the_number_is_said_and_reaches_processes_that_lightning_starts(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "newsrec")
    set_threads(Threads(2, "2 cores"))
    assert torch.get_num_threads() == 2
    assert "OMP_NUM_THREADS" not in os.environ
    assert caplog.messages == ["2 threads: 2 cores; OMP_NUM_THREADS sets another number"]
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")  # so that it is removed again in the end
    set_threads(Threads(1, "2 cores for each of 2 processes"), processes=2, say=False)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert len(caplog.messages) == 1


def threads_of_a_worker(samples):
    return torch.tensor([torch.get_num_threads()])


def test_processes_that_prepare_batches_compute_with_one_thread():
    torch.set_num_threads(2)
    loader = DataLoader([0, 1], num_workers=1, collate_fn=threads_of_a_worker)
    assert [int(number) for number in loader] == [1, 1]


@pytest.mark.slow
def test_fit_takes_the_cores_and_a_run_that_goes_on_the_same_threads(
    mind_dir, plm_dir, tmp_path, monkeypatch, timed, caplog, capsys
):
    caplog.set_level(logging.INFO, "newsrec")
    compared = timed(1.9, 1.9)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    run = tmp_path / "run"
    options = [*fit_options(mind_dir, plm_dir, run), "--baselines=false", "--trainer.max_epochs=1"]
    main([*options, "--trainer.max_steps=1"])
    assert "2 threads: 2 cores; 2 were measured 1.90 times as fast as 1" in caplog.text
    assert yaml.safe_load((run / "config.yaml").read_text())["threads"] == 2
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["newsrec"]["threads"] == 2
    timed(0.1, 0.1)  # one would be chosen now
    torch.set_num_threads(1)
    main([*options, "--ckpt_path=last", "--trainer.max_steps=2"])
    assert "2 threads: as in the run so far" in caplog.text
    assert torch.get_num_threads() == 2
    assert compared == [2]
    assert "--threads is 0" in refused(capsys, *options, "--ckpt_path=last", "--threads=0")


def test_what_linux_says_of_a_cpu_is_part_of_what_a_machine_is(tmp_path):
    cpu = torch.device("cpu")
    text = "model name\t: EPYC\nflags\t: avx2{}\n\nmodel name\t: another core\n"
    (tmp_path / "a").write_text(text.format(""))
    (tmp_path / "b").write_text(text.format(" amx_bf16"))
    a, b = (machine.this_machine(cpu, tmp_path / name) for name in "ab")
    assert a.name == b.name == "EPYC"
    assert a.identity != b.identity
    assert machine.this_machine(cpu, tmp_path / "none").name  # another system
