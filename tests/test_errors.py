"""The error tour: mistakes as people make them, and what they are told."""

import ctypes
import errno
import logging
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import fit_options, tiny_behaviors, tiny_news, write_mind
from safetensors.torch import save_file

from newsrec.__main__ import main
from newsrec.commands import failures
from newsrec.errors import UserError

LONGEST = 420
"""Characters of a message besides the paths in it."""


@pytest.fixture(autouse=True)
def lightning_keeps_the_stderr_of_its_import(monkeypatch):
    """By then pytest has closed that one; logging would print a traceback about it."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture(scope="module")
def place(plm_dir, tmp_path_factory):
    """A data folder and what people mistake for others; every mistake leaves it as it was."""
    root = tmp_path_factory.mktemp("tour")
    write_mind(root / "mind", tiny_news(), tiny_behaviors())
    (root / "nowhere").symlink_to("gone")
    (root / "circle").symlink_to("circle")
    (root / "run").mkdir()
    (root / "run" / "notes.txt").write_text("mine")
    configs = {
        "good": "data:\n  batch_size: 8\n",
        "bad_number": "data:\n\n  batch_size: many\n",
        "typo": "modle:\n  lr: 1\n",
        "list": "- 1\n",
        "only_comments": "# dim: 3\n",
        "tab": "data:\n\tbatch_size: 1\n",
        "no_group": "data: data/none.yaml\n",
        "null_group": "seed_everything: 1\nmodel:\n",
        "list_group": "trainer: [3]\n",
        "number_group": "model: {news: 3, lora: null}\n",
        "no_class": "trainer:\n  callbacks:\n  - class_path: Nope\n",
        "no_class_option": "trainer:\n  callbacks:\n  - class_path: lightning.pytorch.callbacks."
        "EarlyStopping\n    init_args: {monitor: x, patiense: 1}\n",
    }
    (root / "configs").mkdir()
    for name, text in configs.items():
        (root / "configs" / f"{name}.yaml").write_text(text)
    (root / "configs" / "latin.yaml").write_bytes(b"data:\n  root: caf\xe9\n")
    return root


def tell(capsys, argv) -> tuple[int, str]:
    """Run a command that ends with a message; return its exit code and the last paragraph."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return stop.value.code, said.strip().rpartition("newsrec: error: ")[2]


def assert_told(capsys, argv, *parts: str) -> None:
    """Check that a mistake ends with 2 and one short paragraph that has all parts."""
    code, said = tell(capsys, argv)
    for part in parts:
        assert part in said
    assert code == 2
    assert "\n" not in said
    assert len(re.sub(r"/\S+", "", said)) <= LONGEST
    assert said.endswith((".", "?"))


FIT = [
    ("--lr 1", "--lr: there is no such option. Did you mean --model.lr?"),
    ("--epochs 3", "Did you mean --trainer.max_epochs?"),
    ("--heads 2", "Did you mean --model.news.heads or --model.user.heads?"),
    ("--data.batchsize 2", "Did you mean --data.batch_size?"),
    ("configs/good.yaml", "Did you mean --config configs/good.yaml?"),
    ("--config good.yaml", "Did you mean configs/good.yaml?"),
    ("--config confgs/good.yaml", "Did you mean configs/good.yaml?"),
    ("--config configs", "is a folder, not a file"),
    ("--config configs/bad_number.yaml", "bad_number.yaml, line 3: data.batch_size is 'many'"),
    ("--config configs/typo.yaml", "typo.yaml, line 2: ", "Did you mean model.lr?"),
    ("--config configs/list.yaml", "has no options"),
    ("--config configs/only_comments.yaml", "only_comments.yaml has no options"),
    ("--model configs/only_comments.yaml", "only_comments.yaml has no options"),
    ("--config configs/tab.yaml", "tab.yaml, line 2: not YAML"),
    ("--config configs/latin.yaml", "is not UTF-8 text"),
    ("--config configs/no_group.yaml", "no_group.yaml, line 1: data names data/none.yaml"),
    ("--config configs/null_group.yaml", "null_group.yaml, line 2: model is empty", "indented"),
    ("--config configs/list_group.yaml", "line 1: trainer is a list, but it is a group"),
    ("--config configs/number_group.yaml", "line 1: model.news is 3, but it is a group"),
    ("--config configs/no_class.yaml", "no_class.yaml, line 2: trainer.callbacks names Nope"),
    ("--config configs/no_class_option.yaml", "has no option patiense"),
    ("--config configs/good.yaml --data.batch_size big", "--data.batch_size is 'big'"),
    ("--model.lr big", "--model.lr is 'big'; it must be a number."),
    ("--model.dim 1.5", "--model.dim is '1.5'; it must be a whole number."),
    ("--model.user.heads big", "--model.user.heads is 'big'"),
    ("--model.user={heads:_big}", "--model.user is 'big'"),
    ("--trainer.max_epochs big", "is 'big'; it must be a whole number or null."),
    ("--trainer.benchmark 1", "it must be true or false or null."),
    ("--data.fields titel", "--data.fields is 'titel'; it must be a list such as [a, b]."),
    ("--model.news.positions foo", "Choose from learned, recency, none."),
    ("--trainer.precision 31", "32-true"),
    ("--trainer.logger Nope", "--trainer.logger names Nope"),
    ("--data.root", "--data.root has no value after it."),
    ("--seed_everything -4", "seed_everything is -4"),
    ("--seed_everything 99999999999", "from 0 to 4294967295"),
    ("--trainer.devices 4x", "should be an int > 0"),
    ("--trainer.accelerator gpuu", "gpuu"),
    ("--trainer.limit_train_batches 0", "trains nothing"),
    ("--trainer.limit_train_batches 1.5", "1.5"),
    ("--trainer.val_check_interval 0", "--data.val none"),
    ("--trainer.check_val_every_n_epoch 0", "must be at least 1"),
    ("--trainer.gradient_clip_val -1", "is a norm"),
    ("--trainer.barebones true", "Leave it out"),
    ("--trainer.enable_checkpointing false", "--trainer.fast_dev_run true"),
    ("--trainer.max_time abc", "abc"),
    ("--save_every 0", "1 or more"),
    ("--data.num_workers 100000", "at most 1024"),
    ("--data.seed 99999999999999999999", "must be at most"),
    ("--data.fields=[titel]", "'titel' is not a field"),
    ("--data.max_tokens 1000", "reads at most 64 tokens"),
    ("--model.dim 0", "model.dim is 0; it must be at least 1."),
    ("--data.root mnid", "Did you mean mind?"),
    ("--data.root mind/train", "name the folder above, --data.root mind."),
    ("--data.root .", "Did you mean --data.root mind?"),
    ("--ckpt_path mind", "is a folder, and there is no checkpoint in it."),
    ("--trainer.overfit_batches -1", "overfit_batches"),
    ("--patience 0", "at least 1"),
    ("--model.dim 99999999999999999999999999", "it may be at most 1,048,576."),
    ("--model.dim 999983 --model.user.heads 7", "does not divide dim, 999983. Choose one of 1."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", *["parts"]), [(g, p) for g, *p in FIT], ids=lambda v: str(v)[:50]
)
def test_fit_says_what_is_wrong_in_a_sentence(given, parts, place, plm_dir, capsys, monkeypatch):
    monkeypatch.chdir(place)
    options = [*fit_options("mind", plm_dir, "out")]
    typed = [word.replace("_", " ") if "{" in word else word for word in given.split()]
    assert_told(capsys, [*options, *typed], *parts)
    assert not (place / "out").exists()


def test_a_wrong_data_folder_is_found_before_anything_is_measured(
    place, plm_dir, capsys, monkeypatch
):
    monkeypatch.chdir(place)
    monkeypatch.setattr("newsrec.training.hardware.settle.choose_threads", pytest.fail)
    monkeypatch.setattr("newsrec.training.hardware.settle.linear_maps", pytest.fail)
    assert_told(capsys, fit_options("mnid", plm_dir, "out"), "Did you mean mind?")


@pytest.mark.parametrize(
    ("option", "hint"),
    [("accelerator=gpu", True), ("accelerator=gpuu", False), ("strategy=nope", False)],
)
def test_the_way_to_train_without_a_gpu_is_named_where_one_is_missing(
    option, hint, place, plm_dir, capsys, monkeypatch
):
    monkeypatch.chdir(place)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    options = fit_options("mind", plm_dir, "out")
    _, said = tell(capsys, [*options, f"--trainer.{option}"])
    assert ("On a machine without GPU" in said) == hint


def test_an_output_that_no_system_takes_is_a_mistake(capsys):
    assert_told(capsys, ["simulate", "--output", "a\0b"], "holds a null character")


def test_what_a_sentence_hides_can_be_seen(tmp_path, capsys, monkeypatch):
    def broken(*args):
        try:
            raise KeyError("no such thing")
        except KeyError as error:
            raise UserError("It cannot be read.") from error

    monkeypatch.setattr("newsrec.commands.prepare.open_mind", broken)
    assert_told(capsys, ["prepare", "--data.root=x"], "It cannot be read.")
    monkeypatch.setattr(failures, "run_folder", tmp_path)
    with pytest.raises(UserError) as raised:
        broken()
    assert failures.end(raised.value, ["fit"]) == failures.MISTAKE
    assert "KeyError: 'no such thing'" in (tmp_path / "traceback.txt").read_text()
    capsys.readouterr()
    monkeypatch.setenv("NEWSREC_TRACEBACK", "1")
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "--data.root=x"])
    assert stop.value.code == failures.MISTAKE
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert said.endswith("newsrec: error: It cannot be read.\n")


RANDOM = "evaluate --scorer random --data.root mind --output x --split"
OTHERS = [
    ("evalute", "Did you mean 'evaluate'?"),
    ("train", "Choose from fit"),
    ("evaluate", "--data.root, --split and --output are missing."),
    ("evaluate --data.root mind --output x", "--split is missing."),
    ("evaluate --ckpt-path x --data.root mind --split dev --output x", "Did you mean --ckpt_path?"),
    (f"{RANDOM} tset", "--split is 'tset'.", "Did you mean test?"),
    (f"{RANDOM} dev --scorer recnt", "Did you mean recent?"),
    (f"{RANDOM} dev --config x.yaml", "evaluate takes no configuration"),
    (f"{RANDOM} dev --trainer.max_epochs big", "--trainer.max_epochs is 'big'"),
    (f"{RANDOM} dev --baselines maybe", "is 'maybe'; it must be true or false."),
    (f"{RANDOM} dev --output run", "--output run is not empty."),
    ("evaluate --data.root mind --split dev --output x", "--ckpt_path CKPT or --scorer NAME"),
    ("export --ckpt_pth x --output y", "Did you mean --ckpt_path?"),
    ("recommend", "EXPORT_DIR is missing."),
    ("recommend x -k big", "-k is 'big'; it must be a whole number."),
    ("recommend x --k 3", "Did you mean -k?"),
    ("compare", "A is missing."),
    ("compare a b --metric acu", "Did you mean auc?"),
    ("simulate --output x --preset demoo", "Did you mean demo?"),
    ("simulate --output x --seed a", "--seed is 'a'; it must be a whole number."),
    ("download smal", "Did you mean small?"),
    ("prepare --root mind", "Did you mean --data.root?"),
    ("prepare --data.root mind x", "x is given where no argument is expected."),
    ("check-submission", "ZIP, --data.root and --split are missing."),
    (f"{RANDOM} dev --data.root mind/dev", "name the folder above, --data.root mind."),
    (f"{RANDOM} dev --data.root mnd", "Did you mean mind?"),
    ("prepare --data.root mind/dev/news.tsv", "It is a file: name the folder that it is in"),
    ("encode-news x --news", "--news has no value after it."),
    (f"{RANDOM} dev --trainer.limit_predict_batches 0", "limit_predict_batches is 0, but evaluate"),
    (f"{RANDOM} dev --trainer.limit_predict_batches 1", "score all of a split"),
    (f"{RANDOM} dev --trainer.limit_predict_batches 0.5", "score all of a split"),
    (f"{RANDOM} dev --trainer.fast_dev_run true", "fast_dev_run is True, but evaluate must score"),
    (f"{RANDOM} dev --trainer.overfit_batches 1", "score all of a split"),
    (f"{RANDOM} dev --trainer.barebones true", "score all of a split"),
    ("recommend mnid", "There is no mnid. Looked for ", "Did you mean mind?"),
    ("compare mnid run", "mnid does not exist. Give", "Looked for ", "Did you mean mind?"),
    ("check-submission noeps.txt --data.root mind --split test", "There is no noeps.txt. Looked"),
    ("check-submission run/note.txt --data.root mind --split dev", "Did you mean run/notes.txt?"),
    ("simulate --output nowhere", "nowhere is a link to gone, which leads to no folder."),
    ("simulate --output circle/in", "circle is a link to circle, which leads to no folder."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", *["parts"]), [(g, p) for g, *p in OTHERS], ids=lambda v: str(v)[:50]
)
def test_a_command_says_what_is_wrong_in_a_sentence(given, parts, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert_told(capsys, given.split(), *parts)
    assert not (place / "x").exists()


def test_a_bug_of_ours_is_told_as_one_and_keeps_its_traceback(tmp_path, capsys, monkeypatch):
    def broken(*args):
        raise KeyError("no such thing")

    monkeypatch.setattr("newsrec.commands.prepare.open_mind", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "--data.root=x"])
    said = capsys.readouterr().err
    assert stop.value.code == 70
    assert "a bug of newsrec" in said
    assert "KeyError" in said
    assert len(said.strip().splitlines()) <= 4
    (kept,) = tmp_path.glob("newsrec-*/traceback.txt")
    assert str(kept) in said
    text = kept.read_text()
    assert "Traceback (most recent call last)" in text
    assert "in broken" in text
    assert "newsrec prepare --data.root=x" in text
    monkeypatch.setenv("NEWSREC_TRACEBACK", "1")
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "--data.root=x"])
    assert stop.value.code == 70
    assert "in broken" in capsys.readouterr().err


def test_a_bug_in_a_run_keeps_its_traceback_in_the_run_folder(
    mind_dir, plm_dir, tmp_path, capsys, monkeypatch
):
    def broken(self, batch, batch_idx):
        raise KeyError("no such thing")

    monkeypatch.setattr("newsrec.training.module.RecommenderModule.validation_step", broken)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main([*fit_options(mind_dir, plm_dir, run), "--trainer.num_sanity_val_steps=0"])
    assert stop.value.code == 70
    assert str(run / "traceback.txt") in capsys.readouterr().err
    assert "in broken" in (run / "traceback.txt").read_text()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENOSPC])
def test_what_the_system_refuses_is_said_with_the_file(number, capsys, monkeypatch):
    """Permissions stop nobody who is root, so the error is raised by hand."""

    def refuse(*args):
        raise OSError(number, os.strerror(number), "data/train/news.tsv")

    monkeypatch.setattr("newsrec.commands.prepare.open_mind", refuse)
    said = "data/train/news.tsv: " + os.strerror(number)
    assert_told(capsys, ["prepare", "--data.root=x"], said)


@pytest.mark.parametrize(
    "argv",
    [
        "fit --data.root mind --output out/run",
        "evaluate --scorer random --data.root mind --split dev --output out/x",
        "export --ckpt_path nothing.ckpt --output out/x",
        "encode-news nowhere --news mind/train/news.tsv --output out/x",
        "simulate --output out/x",
    ],
)
def test_an_output_on_a_read_only_mount_is_found_before_the_work(argv, place, capsys, monkeypatch):
    """Only a mount stops who is root, so the error is raised by hand; no work gets so far."""

    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.chdir(place)
    monkeypatch.setattr("newsrec.files.tempfile.mkdtemp", refuse)
    monkeypatch.setattr("newsrec.evaluation.scoring.open_mind", pytest.fail)
    output = argv.split()[-1]
    assert_told(
        capsys, argv.split(), f"--output {output}: nothing can be written to .", "Read-only"
    )


def mind_permissions() -> None:
    """Let permissions stop this process, and what it becomes, though it be root (Linux)."""
    if os.geteuid() == 0:
        drop_from_bounding_set = 24  # PR_CAPBSET_DROP
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="root is stopped by Linux's capabilities")
def test_what_permissions_forbid_is_said_in_a_sentence(mind_dir, tmp_path):
    mind = mind_dir
    news = mind / "train" / "news.tsv"
    locked, packed = tmp_path / "locked", tmp_path / "prediction.zip"
    locked.mkdir()
    packed.write_bytes(b"PK")
    zipped = tmp_path / "train.zip"
    zipped.write_bytes(b"PK")
    dev = [f"--data.root={mind}", "--split=dev"]
    cases = (
        (news, 0o000, ["prepare", f"--data.root={mind}"], f"{news}: Permission denied."),
        (locked, 0o000, ["prepare", f"--data.root={locked}"], f"{locked}: Permission"),
        (locked, 0o000, ["prepare", f"--data.root={locked / 'in'}"], "Permission denied."),
        (packed, 0o000, ["check-submission", str(packed), *dev], f"{packed}: Permission denied."),
        (zipped, 0o000, ["prepare", f"--data.root={tmp_path}"], f"{zipped}: Permission denied."),
        (locked, 0o555, ["simulate", f"--output={locked / 'x'}"], f"written to {locked} ("),
    )
    for path, mode, argv, words in cases:
        kept = path.stat().st_mode
        path.chmod(mode)
        done = python(f"main({argv})", capture_output=True, preexec_fn=mind_permissions)
        path.chmod(kept)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def python(code: str, **options) -> subprocess.CompletedProcess:
    """Run a line of Python that calls ``main``, as the command does."""
    line = f"from newsrec.__main__ import main; {code}"
    return subprocess.run([sys.executable, "-c", line], text=True, timeout=60, **options)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 141),
        # argparse itself drops what it cannot print of a help.
        pytest.param(["prepare", "--help"], 0, marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_leaves_ends_a_command_without_a_word(argv, code):
    read, write = os.pipe()
    os.close(read)
    done = python(f"main({argv})", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_what_is_printed_is_said():
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = python("main(['--help'])", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert os.strerror(errno.ENOSPC) in done.stderr


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 8.00 TiB"), RuntimeError("can't start new thread")]
)
def test_too_little_memory_is_no_bug(capsys, monkeypatch, error):
    def allocate(*args):
        raise error

    monkeypatch.setattr("newsrec.commands.prepare.open_mind", allocate)
    assert_told(capsys, ["prepare", "--data.root=x"], f"too little memory ({error}). Close other")


def test_ctrl_c_is_no_bug(capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("newsrec.commands.prepare.open_mind", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "--data.root=x"])
    assert stop.value.code == failures.INTERRUPTED
    assert capsys.readouterr().err == ""


def write_foreign(kind: str, folder: Path) -> Path:
    """Write what people give as a checkpoint, and return its path."""
    path = folder / "some.ckpt"
    weights = {"a.weight": torch.ones(3, 3), "a.bias": torch.ones(3)}
    if kind == "state dict":
        torch.save(weights, path)
    elif kind == "another Lightning project":
        torch.save({"state_dict": weights, "pytorch-lightning_version": "2.1.0"}, path)
    elif kind == "another project":
        torch.save({"model_state_dict": weights, "epoch": 3}, path)
    elif kind == "whole module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Path("x")))
    elif kind == "safetensors":
        save_file(weights, path)
    elif kind == "TorchScript":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("prediction.txt", "1 [1]")
    elif kind == "Git LFS":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "web page":
        path.write_text("<!DOCTYPE html><html>404</html>")
    elif kind == "run folder":
        (path / "checkpoints").mkdir(parents=True)
        (path / "checkpoints" / "best.ckpt").write_text("")
    elif kind == "export":
        path.mkdir()
        (path / "manifest.json").write_text("{}")
    elif kind == "mistyped":
        (folder / "same.ckpt").write_text("")
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("state dict", "holds only 2 weights (a state dict)"),
        ("another Lightning project", "is a Lightning checkpoint of another project"),
        ("another project", "another project's checkpoint (it holds epoch, model_state_dict)"),
        ("whole module", "holds Python objects (torch.nn.modules.linear.Linear)"),
        ("pickle", "a pickle of Python objects"),
        ("safetensors", "in safetensors format"),
        ("TorchScript", "a TorchScript program"),
        ("zip", "a zip of other files"),
        ("Git LFS", "a pointer of Git LFS"),
        ("web page", "a web page"),
        ("run folder", "is a folder. Give the file in it: "),
        ("export", "that export wrote"),
        ("mistyped", "Did you mean "),
    ],
)
def test_a_file_that_is_taken_for_a_checkpoint_is_said_to_be_what_it_is(
    kind, said, place, tmp_path, capsys
):
    path = write_foreign(kind, tmp_path)
    options = f"--data.root={place / 'mind'} --split=dev --output={tmp_path / 'x'}".split()
    options.append("--trainer.accelerator=cpu")
    assert_told(capsys, ["evaluate", f"--ckpt_path={path}", *options], f"--ckpt_path {path} ", said)
