import csv
import gc
import json
import logging
import re
import shlex
import shutil
import sys
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import fit_options, refused, tiny_behaviors, tiny_news, write_mind
from lightning import Trainer
from sklearn.metrics import roc_auc_score
from warm import run

from newsrec.__main__ import main, no_garbage_collection
from newsrec.commands.fit import RunConfig
from newsrec.evaluation.baselines import BASELINES
from newsrec.metrics import METRICS
from newsrec.training.checkpoint.read import read_checkpoint


@pytest.fixture(autouse=True)
def lightning_keeps_the_stderr_of_its_import(monkeypatch):
    """By then pytest has closed that one; logging would print a traceback about it."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture(scope="module")
def trained(plm_dir, tmp_path_factory):
    """A run of the tiny MIND; copy it to go on with it."""
    folder = tmp_path_factory.mktemp("trained")
    mind = write_mind(folder / "mind", tiny_news(), tiny_behaviors())
    main(fit_options(mind, plm_dir, folder / "run"))
    return folder / "run"


@pytest.fixture
def copied(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.usefixtures("whole_runs")
def test_fit_and_evaluate_in_one_go(mind_dir, plm_dir, tmp_path, capsys):
    trained = tmp_path / "runs" / "one"
    main(fit_options(mind_dir, plm_dir, trained))
    best = trained / "checkpoints" / "best.ckpt"
    assert best.is_file()
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert (trained / "config.yaml").is_file()
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((trained / "tensorboard").iterdir())
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["val/auc"]) for row in rows) == 2
    said = capsys.readouterr().out
    assert str(best) in said
    assert "recent" in said
    evaluations = [line for line in said.splitlines() if "python -m newsrec evaluate" in line]
    assert said.rstrip().endswith(f"Open the page: {(trained / 'report.html').as_uri()}")
    assert [line.split("--split ")[1].split()[0] for line in evaluations] == ["dev", "test"]
    assert "check-submission results/one-test/prediction.zip" in said

    main(["evaluate", f"--ckpt_path={best}", f"--data.root={mind_dir}", "--split=dev",
          f"--output={tmp_path / 'dev'}", "--trainer.accelerator=cpu"])  # fmt: skip
    metrics = json.loads((tmp_path / "dev" / "metrics.json").read_text())
    logged = max(float(row["val/auc"]) for row in rows if row["val/auc"])
    assert metrics["auc"] == pytest.approx(logged, abs=1e-6)
    assert metrics["selected_on"] == metrics["split"] == "dev"
    last = read_checkpoint(best.with_name("last.ckpt"))["newsrec"]
    assert (last["selected_on"], last["metrics"]) == (None, {})
    assert metrics["single_class"] + metrics["evaluated"] == metrics["impressions"]
    low, high = metrics["intervals"]["auc"]
    assert low <= metrics["auc"] <= high
    summary = json.loads((trained / "summary.json").read_text())
    assert summary.pop("run")["steps"] == max(int(row["step"]) for row in rows) + 1
    assert summary == metrics  # what fit keeps is what evaluate finds
    assert f"{metrics['auc']:.4f}" in (trained / "report.html").read_text()
    shown = capsys.readouterr().out
    assert_reported(tmp_path / "dev", metrics, shown)
    # What fit has said of the baselines, evaluate says as well.
    assert set(metrics["baselines"]) == set(BASELINES)
    for row in metrics["baselines"].values():
        assert " ".join(f"{row[name]:.4f}" for name in METRICS) in re.sub("[ │]+", " ", said)
    page = (tmp_path / "dev" / "report.html").read_text()
    assert page.count("<polyline") == len(METRICS)  # validation; a run so short logs no loss
    assert "max_epochs" in page  # the configuration


def assert_reported(output, metrics, said, *more):
    """Check that the files of a labelled split agree, and that the terminal names them."""
    names = ["metrics.json", "prediction.zip", "per_impression.parquet", *more, "report.html"]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    assert said.splitlines()[-1] == f"Written to {output}: {', '.join(names)}."
    table = pq.read_table(output / "per_impression.parquet")
    assert len(table) == metrics["impressions"]
    for name in METRICS:
        values = np.array(table[name].to_pylist(), dtype=float)
        assert np.nanmean(values) == pytest.approx(metrics[name], abs=1e-12)
        assert f"{metrics[name]:.4f}" in said
        assert f"{metrics[name]:.4f}" in (output / "report.html").read_text()
    for row in metrics["baselines"].values():
        assert f"{row['auc_difference']:+.4f}" in said


def test_raw_scores_give_the_metrics_that_evaluate_reports(trained, mind_dir, tmp_path):
    best = trained / "checkpoints" / "best.ckpt"
    for split in ("dev", "test"):
        main(["evaluate", f"--ckpt_path={best}", f"--data.root={mind_dir}", f"--split={split}",
              f"--output={tmp_path / split}", "--trainer.accelerator=cpu", "--baselines=false",
              "--scores=true"])  # fmt: skip
    rows = pq.read_table(tmp_path / "dev" / "scores.parquet").to_pylist()
    metrics = json.loads((tmp_path / "dev" / "metrics.json").read_text())
    lines = (mind_dir / "dev" / "behaviors.tsv").read_text().splitlines()
    aucs = []
    for row, line in zip(rows, lines, strict=True):
        number, user, _, _, shown = line.split("\t")
        assert (row["impression_id"], row["user"]) == (int(number), user)
        pairs = [word.split("-") for word in shown.split()]
        assert row["candidates"] == [None if n == "N404" else n for n, _ in pairs]
        assert row["labels"] == [int(label) for _, label in pairs]
        if len(set(row["labels"])) == 2:
            rank = np.argsort(np.argsort(-np.array(row["scores"]), kind="stable"))
            aucs.append(roc_auc_score(row["labels"], -rank))
    assert np.mean(aucs) == pytest.approx(metrics["auc"], abs=1e-12)
    hidden = pq.read_table(tmp_path / "test" / "scores.parquet")
    assert hidden["labels"].null_count == len(hidden) == 15


def test_a_run_folder_may_be_named_from_the_current_folder(
    mind_dir, plm_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main(fit_options("mind", plm_dir, "runs/the first"))
    summary = json.loads((tmp_path / "runs" / "the first" / "summary.json").read_text())
    assert summary["run"]["checkpoint"] == "checkpoints/best.ckpt"
    line = next(line for line in capsys.readouterr().out.splitlines() if "newsrec export" in line)
    assert shlex.split(line)[4:] == [
        "--ckpt_path", "runs/the first/checkpoints/best.ckpt", "--data.root", "mind",
        "--output", "exports/the first",
    ]  # fmt: skip


def test_loggers_get_the_options(trained):
    options = yaml.safe_load((trained / "tensorboard" / "hparams.yaml").read_text())
    assert options["model"]["dim"] == 16
    assert options["model"]["user"]["heads"] == 2
    assert options["data"]["max_tokens"] == 12
    assert options["trainer"]["max_epochs"] == 2
    assert options["seed_everything"] == 42


def test_evaluate_can_leave_the_baselines_out(trained, mind_dir, tmp_path):
    best = trained / "checkpoints" / "best.ckpt"
    main(["evaluate", f"--ckpt_path={best}", f"--data.root={mind_dir}", "--split=dev",
          f"--output={tmp_path / 'dev'}", "--trainer.accelerator=cpu",
          "--baselines=false"])  # fmt: skip
    assert json.loads((tmp_path / "dev" / "metrics.json").read_text())["baselines"] == {}


def test_a_tuned_plm_is_compared_with_itself_before_training(mind_dir, plm_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO, "newsrec")
    plm = tmp_path / "plm"
    shutil.copytree(plm_dir, plm)
    options = fit_options(mind_dir, plm, tmp_path / "run")
    main([*options, "--model.tune_layers=1", "--model.plm_lr=0.01", "--baselines=false"])
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"

    def cosine(name, *options):
        main(["evaluate", *options, f"--data.root={mind_dir}", "--split=dev",
              f"--output={tmp_path / name}", "--trainer.accelerator=cpu"])  # fmt: skip
        return json.loads((tmp_path / name / "metrics.json").read_text())

    before = cosine("before", "--scorer=cosine", f"--model.plm={plm}", "--data.max_tokens=12")
    beside = cosine("beside", f"--ckpt_path={best}")["baselines"]["cosine"]
    assert {name: beside[name] for name in METRICS} == {name: before[name] for name in METRICS}
    recent = cosine("recent", "--scorer=recent", f"--model.plm={plm}", "--data.max_tokens=12")
    name = "vector_diversity@10"
    assert recent["beyond"]["vectors"] == before["beyond"]["vectors"]
    assert (
        recent["beyond"]["baselines"]["cosine"][name]["value"]
        == (before["beyond"]["metrics"][name]["value"])
    )
    shutil.rmtree(plm)
    assert "cosine" not in cosine("gone", f"--ckpt_path={best}")["baselines"]
    assert "baseline cosine left out" in caplog.text


def test_a_baseline_of_a_split_without_labels_says_whose_clicks_it_counts(
    mind_dir, tmp_path, capsys
):
    main(["evaluate", "--scorer=recent", f"--data.root={mind_dir}", "--split=test",
          f"--output={tmp_path / 'test'}", "--trainer.accelerator=cpu"])  # fmt: skip
    said = capsys.readouterr().out
    assert "The baseline counts the clicks of train (2019-11-11) and dev (2019-11-15)." in said
    names = {path.name for path in (tmp_path / "test").iterdir()}
    assert names == {"metrics.json", "prediction.zip", "report.html"}
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert not {"baselines", "slices", "auc"} & set(metrics)
    assert metrics["category_entropy@10"] > 0


def test_a_submission_has_a_line_per_impression_in_file_order(trained, mind_dir, tmp_path):
    best = trained / "checkpoints" / "best.ckpt"
    main(["evaluate", f"--ckpt_path={best}", f"--data.root={mind_dir}", "--split=test",
          f"--output={tmp_path / 'test'}", "--trainer.accelerator=cpu"])  # fmt: skip
    with zipfile.ZipFile(tmp_path / "test" / "prediction.zip") as archive:
        assert archive.namelist() == ["prediction.txt"]
        lines = archive.read("prediction.txt").decode().splitlines()
    rows = (Path(mind_dir) / "test" / "behaviors.tsv").read_text().splitlines()
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        number, _, _, _, candidates = row.split("\t")
        name, ranks = line.split(" ")
        assert name == number
        assert sorted(json.loads(ranks)) == list(range(1, len(candidates.split()) + 1))
    assert "auc" not in json.loads((tmp_path / "test" / "metrics.json").read_text())


@pytest.mark.parametrize("scorer", ["random", "popularity", "recent", "age", "tfidf"])
def test_baselines_are_evaluated_without_a_checkpoint(scorer, mind_dir, tmp_path, capsys):
    output = tmp_path / scorer
    main(["evaluate", f"--scorer={scorer}", f"--data.root={mind_dir}", "--split=dev",
          f"--output={output}", "--trainer.accelerator=cpu"])  # fmt: skip
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["scorer"] == scorer
    assert 0 <= metrics["auc"] <= 1
    assert set(metrics["baselines"]) == {*BASELINES} - {scorer, "cosine"}
    assert_reported(output, metrics, capsys.readouterr().out)


def test_a_split_of_other_data_is_not_said_to_have_chosen_or_trained_the_checkpoint(
    trained, mind_dir, tmp_path, capsys
):
    best = trained / "checkpoints" / "best.ckpt"

    def evaluate(name, split):
        main(["evaluate", f"--ckpt_path={best}", f"--data.root={mind_dir}", f"--split={split}",
              f"--output={tmp_path / name}", "--trainer.accelerator=cpu",
              "--baselines=false"])  # fmt: skip
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        return metrics["other_data"], capsys.readouterr().out

    other, said = evaluate("own", "dev")
    assert other == []
    assert "dev chose this checkpoint" in said
    for split in ("train", "dev"):
        path = mind_dir / split / "behaviors.tsv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    other, said = evaluate("other", "dev")
    assert other == ["train", "dev"]
    assert "The data of training was not this folder's train and dev." in said
    assert "chose" not in said
    assert "The model was trained on" not in evaluate("train", "train")[1]
    main(["compare", str(tmp_path / "other"), str(tmp_path / "other")])
    assert "favours" not in capsys.readouterr().out


def test_scores_that_are_no_numbers_are_refused(trained, mind_dir, tmp_path, capsys):
    best = trained / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    for name, weights in checkpoint["state_dict"].items():
        if name.startswith("recommender.user_encoder") and weights.is_floating_point():
            weights.fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    said = refused(
        capsys, "evaluate", f"--ckpt_path={tmp_path / 'nan.ckpt'}", f"--data.root={mind_dir}",
        "--split=dev", f"--output={tmp_path / 'x'}", "--trainer.accelerator=cpu",
    )  # fmt: skip
    assert "nan.ckpt" in said
    assert "scores are NaN, the first in impression 42, and a NaN has no rank" in said
    assert not (tmp_path / "x").exists()


def test_where_nothing_can_be_evaluated_there_is_no_metric_and_no_nan(mind_dir, tmp_path, capsys):
    path = mind_dir / "dev" / "behaviors.tsv"
    path.write_text(path.read_text().replace("-1", "-0"))
    output = tmp_path / "out"
    main(["evaluate", "--scorer=recent", f"--data.root={mind_dir}", "--split=dev",
          f"--output={output}", "--trainer.accelerator=cpu"])  # fmt: skip
    said = capsys.readouterr().out
    assert "No impression has both a clicked and a skipped candidate: there are no metrics." in said
    metrics = json.loads((output / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["evaluated"] == 0
    assert metrics["single_class"] == metrics["impressions"] > 0
    assert not {*METRICS, "intervals", "baselines"} & set(metrics)
    page = (output / "report.html").read_text()
    assert "No impression has both a clicked and a skipped candidate" in page
    main(["check-submission", str(output / "prediction.zip"), f"--data.root={mind_dir}",
          "--split=dev"])  # fmt: skip
    checked = capsys.readouterr().out
    assert (
        "dev has no impression with a clicked and a skipped candidate, so there is no score."
        in checked
    )
    assert "nan" not in f"{said} {checked} {page}".lower().replace("finan", "")
    assert "nothing to compare" in refused(capsys, "compare", output, output)


def test_of_several_processes_one_scores_a_baseline(mind_dir, tmp_path, capsys, monkeypatch):
    command = ["evaluate", "--scorer=recent", f"--data.root={mind_dir}", "--split=dev",
               f"--output={tmp_path / 'recent'}", "--trainer.accelerator=cpu"]  # fmt: skip
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    main(command)
    assert not (tmp_path / "recent").exists()
    assert not capsys.readouterr().out
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    main(command)
    monkeypatch.setenv("RANK", "1")
    main(command)  # the folder that the first has filled is no mistake
    assert (tmp_path / "recent" / "metrics.json").is_file()


def test_a_run_goes_on_from_its_last_checkpoint(copied, mind_dir, plm_dir):
    options = fit_options(mind_dir, plm_dir, copied)
    main([*options, "--trainer.max_epochs=3", "--ckpt_path=last"])
    with (copied / "metrics.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["val/auc"]]
    assert epochs == ["0", "1", "2"]


@pytest.fixture
def mind_week(mind_dir):
    """The tiny MIND with train on six days."""
    path = mind_dir / "train" / "behaviors.tsv"
    lines = path.read_text().splitlines(keepends=True)
    text = "".join(line.replace("11/11/", f"11/{9 + i % 6}/", 1) for i, line in enumerate(lines))
    path.write_text(text)
    return mind_dir


def test_a_run_from_before_an_option_goes_on_as_it_was(mind_dir, plm_dir, tmp_path, capsys):
    output = tmp_path / "run"
    options = fit_options(mind_dir, plm_dir, output)
    old = ["--model.residual=false", "--data.frozen_states=fp32"]
    main([*options, *old])
    path = output / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["hyper_parameters"]["residual"]
    del checkpoint["datamodule_hyper_parameters"]["frozen_states"]
    torch.save(checkpoint, path)
    more = [o.replace("max_epochs=2", "max_epochs=3") for o in options]
    main([*more, "--ckpt_path=last"])
    again = torch.load(path, weights_only=True)
    assert again["global_step"] * 2 == checkpoint["global_step"] * 3
    assert again["hyper_parameters"]["residual"] is False
    assert again["datamodule_hyper_parameters"]["frozen_states"] == "fp32"
    torch.save(checkpoint, path)
    said = refused(capsys, *more, "--ckpt_path=last", "--model.residual=true")
    assert "model.residual is True" in said


def test_a_run_goes_on_without_its_options_being_written_again(copied, caplog):
    caplog.set_level(logging.INFO, "newsrec")
    path = copied / "checkpoints" / "last.ckpt"
    before = torch.load(path, weights_only=True)
    main(["fit", "--ckpt_path=last", f"--output={copied}", "--trainer.max_epochs=3",
          "--trainer.accelerator=cpu", "--trainer.devices=1", "--baselines=false",
          "--trainer.enable_progress_bar=false"])  # fmt: skip
    after = torch.load(path, weights_only=True)
    assert after["global_step"] * 2 == before["global_step"] * 3
    for part in ("hyper_parameters", "datamodule_hyper_parameters"):
        assert after[part] == before[part]
    assert f"taken from {copied / 'config.yaml'}" in caplog.text
    assert "trainer.max_epochs is 3, 2 in the run so far" in caplog.text


def test_a_moved_checkpoint_brings_the_options_that_nobody_wrote(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO, "newsrec")
    path = trained / "checkpoints" / "last.ckpt"
    before = torch.load(path, weights_only=True)
    main(["fit", f"--ckpt_path={path}", f"--output={tmp_path / 'on'}", "--trainer.max_epochs=3",
          "--trainer.accelerator=cpu", "--trainer.devices=1", "--baselines=false",
          "--trainer.enable_progress_bar=false"])  # fmt: skip
    after = torch.load(tmp_path / "on" / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["hyper_parameters"] == before["hyper_parameters"]
    assert "model.dim is 16, as in the run that is resumed" in caplog.text


def test_a_run_killed_before_its_first_checkpoint_starts_anew(mind_dir, plm_dir, tmp_path):
    output = tmp_path / "run"
    options = [*fit_options(mind_dir, plm_dir, output), "--baselines=false"]
    main([*options, "--trainer.log_every_n_steps=1"])
    best = output / "checkpoints" / "best.ckpt"
    assert all(any(output.glob(name)) for name in ("tensorboard/events*", "metrics.csv"))
    for path in (best, output / "summary.json", output / "report.html"):
        path.unlink()  # they come with or after the first checkpoint
    (best.parent / "last.ckpt").rename(best.parent / ".last.ckpt.part")
    main([*options, "--ckpt_path=auto"])
    assert best.is_file()
    with (output / "metrics.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["val/auc"]]
    assert epochs == ["0", "1"]


def test_a_callback_with_an_enum_for_a_default_can_be_named(mind_dir, plm_dir, tmp_path):
    output = tmp_path / "run"
    options = [*fit_options(mind_dir, plm_dir, output), "--baselines=false"]
    main(
        [
            *options,
            "--trainer.max_epochs=1",
            "--trainer.callbacks=lightning.pytorch.callbacks.Timer",
        ]
    )
    assert "interval: step" in (output / "config.yaml").read_text()


def test_what_is_reported_in_the_end_is_not_computed_from_rounded_states(
    mind_dir, plm_dir, tmp_path, monkeypatch
):
    from newsrec.report import closing

    seen = []
    score_split = closing.score_split
    monkeypatch.setattr(
        closing, "score_split", lambda *args: seen.append(args[2].states) or score_split(*args)
    )
    for precision in ("bf16", "fp32"):
        options = fit_options(mind_dir, plm_dir, tmp_path / precision)
        options += ["--trainer.max_epochs=1", "--baselines=false"]
        main([*options, f"--data.frozen_states={precision}"])
    assert seen[0] is None
    assert seen[1].exact


def test_the_last_day_of_train_chooses_and_dev_judges(mind_week, plm_dir, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, "newsrec")
    output = tmp_path / "one"
    main([*fit_options(mind_week, plm_dir, output), "--data.val=last_day", "--data.stale=3"])
    assert "train: 2019-11-09 to 2019-11-11, " in caplog.text
    assert "last_day: 2019-11-14, " in caplog.text
    assert "last_day, 2019-11-14:" in capsys.readouterr().out
    ckpt = f"--ckpt_path={output / 'checkpoints' / 'best.ckpt'}"
    for split, window in (("dev", "2019-11-15"), ("last_day", "2019-11-14")):
        main(["evaluate", ckpt, f"--data.root={mind_week}", f"--split={split}",
              f"--output={tmp_path / split}", "--trainer.accelerator=cpu"])  # fmt: skip
        metrics = json.loads((tmp_path / split / "metrics.json").read_text())
        assert metrics["selected_on"] == "last_day"
        assert metrics["trained_on"] == {"train": "2019-11-09 to 2019-11-11"}
        assert metrics["window"] == window
        said = capsys.readouterr().out
        assert "Trained on train, 2019-11-09 to 2019-11-11." in said
        assert ("last_day chose this checkpoint" in said) == (split == "last_day")
    rows = (mind_week / "train" / "behaviors.tsv").read_text().splitlines()
    assert metrics["impressions"] == sum("\t11/14/" in row for row in rows)


@pytest.mark.parametrize("val", ["dev", pytest.param("last_day", marks=pytest.mark.slow)])
def test_unseen_news_choose_the_checkpoint_and_stand_beside_the_total(
    val, mind_week, plm_dir, tmp_path, capsys, caplog
):
    caplog.set_level(logging.INFO, "newsrec")
    output = tmp_path / "one"
    options = [f"--data.val={val}", "--data.val_news=new"]
    if val == "last_day":  # where only train exists; news of its last days are new by then
        shutil.rmtree(mind_week / "dev")
        shutil.rmtree(mind_week / "test")
        path = mind_week / "train" / "behaviors.tsv"
        early = "\t".join(["900", "U1", "11/8/2019 9:05:58 AM", "N1 N3", "N2-1 N5-0"])
        path.write_text(f"{early}\n{path.read_text()}")
        options += ["--data.val_days=2", "--data.stale=5"]
    main([*fit_options(mind_week, plm_dir, output), *options])
    assert f"{val} chooses by news that train has not seen: " in caplog.text
    said = capsys.readouterr().out
    assert "split that chose the checkpoint only by unseen news" in " ".join(said.split())
    best = output / "checkpoints" / "best.ckpt"
    with (output / "metrics.csv").open() as file:
        logged = max(float(row["val/auc"]) for row in csv.DictReader(file) if row["val/auc"])
    main(["evaluate", f"--ckpt_path={best}", f"--data.root={mind_week}", f"--split={val}",
          f"--output={tmp_path / 'out'}", "--trainer.accelerator=cpu"])  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["unseen"]["auc"] == pytest.approx(logged, abs=1e-6)
    assert metrics["unseen"]["auc"] != metrics["auc"]
    assert (metrics["selected_on"], metrics["selected_news"]) == (val, "new")
    again = capsys.readouterr().out
    assert f"{val} chose this checkpoint only by unseen news: expect" in again
    for text in (said, again):
        assert f"AUC {metrics['unseen']['auc']:.4f}" in " ".join(text.split())
    assert torch.load(best, weights_only=True)["newsrec"]["selected_news"] == "new"
    assert "unseen news" in (tmp_path / "out" / "report.html").read_text()
    summary = json.loads((output / "summary.json").read_text())
    assert summary["unseen"] == metrics["unseen"]
    refusal = refused(capsys, *fit_options(mind_week, plm_dir, output), "--ckpt_path=last",
                      "--data.val_news=all")  # fmt: skip
    assert "val_news" in refusal


def test_days_of_last_day_belong_to_that_split(mind_week, tmp_path, capsys):
    command = ["evaluate", "--scorer=popularity", f"--data.root={mind_week}"]
    main([*command, "--split=last_day", "--data.val_days=3", f"--output={tmp_path / 'three'}"])
    metrics = json.loads((tmp_path / "three" / "metrics.json").read_text())
    assert metrics["window"] == "2019-11-12 to 2019-11-14"
    assert metrics["trained_on"] == {"train": "2019-11-09 to 2019-11-11"}
    said = refused(capsys, *command, "--split=dev", "--data.val_days=3",
                   f"--output={tmp_path / 'x'}")  # fmt: skip
    assert "--data.val_days 3 is for --split last_day, and --split is dev" in said


def test_a_final_model_is_trained_on_everything_and_its_last_checkpoint_kept(
    mind_week, plm_dir, tmp_path, capsys, caplog
):
    caplog.set_level(logging.INFO, "newsrec")
    output = tmp_path / "one"
    main([*fit_options(mind_week, plm_dir, output), "--data.train=train+dev", "--data.val=none"])
    assert "train+dev: 2019-11-09 to 2019-11-15, 64 impressions" in caplog.text
    said = capsys.readouterr().out
    assert f"Last checkpoint: {output / 'checkpoints' / 'best.ckpt'}" in said
    last = f"--ckpt_path={output / 'checkpoints' / 'last.ckpt'}"
    main(["evaluate", last, f"--data.root={mind_week}", "--split=dev",
          f"--output={tmp_path / 'dev'}", "--trainer.accelerator=cpu"])  # fmt: skip
    metrics = json.loads((tmp_path / "dev" / "metrics.json").read_text())
    assert metrics["selected_on"] is None
    assert "The model was trained on dev, so" in capsys.readouterr().out
    said = refused(capsys, "evaluate", last, f"--data.root={mind_week}", "--split=last_day",
                   f"--output={tmp_path / 'day'}", "--trainer.accelerator=cpu")  # fmt: skip
    assert "was trained with data.val none, so it has seen that day" in said


def test_bad_lines_are_skipped_where_asked_and_said(mind_dir, plm_dir, tmp_path, capsys):
    for split in ("train", "dev"):
        path = mind_dir / split / "behaviors.tsv"
        path.write_bytes(path.read_bytes() + b"seven\tU1\t11/11/2019 9:05:58 AM\t\tN1-0\n")
    output = tmp_path / "one"
    said = refused(capsys, *fit_options(mind_dir, plm_dir, output))
    assert "line 42, column impression_id: not a whole number: 'seven'" in said
    assert not output.exists()
    main([*fit_options(mind_dir, plm_dir, output), "--data.on_bad_line=drop"])
    main(["evaluate", f"--ckpt_path={output / 'checkpoints' / 'best.ckpt'}", "--split=dev",
          f"--data.root={mind_dir}", f"--output={tmp_path / 'dev'}",
          "--trainer.accelerator=cpu"])  # fmt: skip
    metrics = json.loads((tmp_path / "dev" / "metrics.json").read_text())
    assert (metrics["impressions"], metrics["dropped_lines"]) == (23, 1)
    assert "1 impression was dropped and not ranked" in capsys.readouterr().out


def test_interpolation_follows_the_command_line(mind_dir, tmp_path, monkeypatch):
    from newsrec.commands.fit import FitCLI, cli_options

    monkeypatch.setattr(FitCLI, "_run_subcommand", lambda self, name: None)
    config = tmp_path / "run.yaml"
    config.write_text("data:\n  max_history: 20\n  eval_batch_size: ${data.max_history}\n")
    monkeypatch.setattr("sys.argv", ["newsrec"])
    args = ["fit", "--config", str(config), "--data.max_history", "7"]
    args += ["--trainer.accelerator", "cpu", "--output", str(tmp_path / "run")]
    args += ["--data.root", str(mind_dir)]
    cli = FitCLI(args=args, **cli_options())
    assert cli.datamodule.eval_batch_size == 7
    assert cli.model.max_history == 7


@pytest.fixture
def mistaken(mind_dir, plm_dir, tmp_path, capsys):
    """Return a function that gives ``fit`` further options and returns what it says of them."""

    def fit(*more, without=None):
        options = fit_options(mind_dir, plm_dir, tmp_path / "run")
        said = refused(capsys, *(o for o in options if without is None or without not in o), *more)
        assert not (tmp_path / "run").exists()
        return said

    return fit


def test_an_unknown_command_folder_or_option_is_named(mistaken, capsys):
    assert "Did you mean 'fit'?" in refused(capsys, "fti")
    assert "nowhere" in mistaken("--data.root=nowhere")
    assert "data.no_such_key" in mistaken("--data.no_such_key=1")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("data:\n  no_such_key: 1\n", 2, "no_such_key"),
        ("data:\n  max_histroy: 1\n", 2, "Did you mean data.max_history?"),
        ("data:\n  eval_batch_size: ${data.no_such_key}\n", 2, "no_such_key"),
        ("data:\n  root: ${oc.env:NO_SUCH_VARIABLE}\n", 2, "NO_SUCH_VARIABLE"),
        ("data:\n  batch_size: many\n", 2, "many"),
        ("data:\n\n  plm: other\n", 3, "Set model.plm"),
        ("data: [1\n", 2, "not YAML"),
    ],
)
def test_a_mistake_in_a_config_is_named_with_its_line(text, line, said, mistaken, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    answer = mistaken(f"--config={config}", without="data.root")
    assert f"{config}, line {line}: " in answer
    assert said in answer


def test_a_mistake_in_a_config_that_another_names_is_found_there(mistaken, tmp_path):
    encoder, config = tmp_path / "encoder.yaml", tmp_path / "config.yaml"
    encoder.write_text("heads: 2\nlayrs: 1\n")
    config.write_text("model:\n  user: encoder.yaml\n")
    for place in (f"--model.user={encoder}", f"--config={config}"):
        answer = mistaken(place, without="model.user")
        assert f"{encoder}, line 2: " in answer
        assert "Did you mean model.user.layers?" in answer


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.precision=bf16-true"], "32-true, bf16-mixed"),
        (["--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches is 0"),
        (["--trainer.max_steps=0"], "trainer.max_steps is 0"),
        (["--trainer.max_epochs=0"], "trainer.max_epochs is 0"),
        (["--trainer.val_check_interval=2000"], "--trainer.check_val_every_n_epoch null"),
        (["--data.frozen_states=fp16"], "bf16, fp32, none"),
        (["--model.tune_layers=3"], "this PLM has 2 layers"),
        (["--model.dim=64", "--model.residual=true"], "model.dim is 64"),
        (["--model.lr=-1"], "model.lr is -1.0"),
        (["--trainer.strategy=foo"], "foo"),
        (["--model.max_history=3"], "Set data.max_history"),
        (["--ckpt_path=last"], "last.ckpt"),
        (["--ckpt_path=https://example.org/best.ckpt"], "is a URL"),
        (["--model.dim=15"], "heads"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_to_choose(options, said, mistaken):
    assert said in mistaken(*options)


def test_fp16_is_refused_before_lightning_says_a_word(mistaken):
    half = mistaken("--trainer.precision=16-mixed")
    assert "trainer.precision is 16-mixed" in half
    assert "bf16-mixed" in half
    assert "Using" not in half  # what Lightning says of a precision it takes


def test_a_plm_that_is_nowhere_is_named_with_the_way_to_one(mistaken, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read at import
    said = mistaken("--model.plm=nobody/no-such-model")
    assert "nobody/no-such-model" in said
    assert "save_pretrained" in said


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("only\ttwo", "line 2"),
        ("9\tU1\tyesterday\t\tN1-0 N2-1", "yesterday"),
        ("9\tU1\t11/11/2019 9:05:58 AM\t\tN1 N2-1", "label"),
    ],
)
def test_a_bad_line_of_the_data_is_named_with_its_number(line, place, mind_dir, capsys):
    behaviors = mind_dir / "train" / "behaviors.tsv"
    first, _, *rest = behaviors.read_text().splitlines()
    behaviors.write_text("\n".join([first, line, *rest]) + "\n")
    said = refused(capsys, "prepare", f"--data.root={mind_dir}")
    assert "behaviors.tsv, line 2" in said
    assert place in said


def test_a_folder_that_holds_something_is_no_run_folder(mind_dir, plm_dir, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "not empty" in refused(capsys, *fit_options(mind_dir, plm_dir, tmp_path))


def test_evaluate_refuses_options_that_contradict_the_checkpoint(
    trained, mind_dir, tmp_path, capsys
):
    said = refused(
        capsys,
        "evaluate",
        f"--ckpt_path={trained / 'checkpoints' / 'best.ckpt'}",
        f"--data.root={mind_dir}",
        "--split=dev",
        f"--output={tmp_path / 'x'}",
        "--trainer.accelerator=cpu",
        "--data.max_history=3",
    )
    assert "3" in said
    assert "50" in said
    assert not (tmp_path / "x").exists()


def test_evaluate_refuses_a_place_it_cannot_write_to_before_it_scores(
    mind_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("newsrec.commands.evaluate.score_by_baseline", pytest.fail)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    said = refused(capsys, "evaluate", "--scorer=random", f"--data.root={mind_dir}", "--split=dev",
                   f"--output={tmp_path / 'link'}", "--trainer.accelerator=cpu")  # fmt: skip
    assert "cannot be replaced as a whole" in said


def test_a_package_that_a_command_lacks_is_named(monkeypatch, capsys):
    """As in an environment that has what newsrec.serving needs, and no more."""
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert "needs the package jsonargparse" in refused(capsys, "recommend", "exported")


def test_imports_are_not_searched_for_garbage(tmp_path, monkeypatch):
    """The collector is as before afterwards, also if an import fails or the caller had it off."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow_import.py").write_text("import gc\non = gc.isenabled()\n", encoding="utf-8")
    (tmp_path / "broken_import.py").write_text("raise OSError\n", encoding="utf-8")
    before = gc.get_freeze_count()
    try:
        with no_garbage_collection(freeze=False):
            import slow_import
        assert not slow_import.on
        assert gc.isenabled()
        assert gc.get_freeze_count() == before
        with pytest.raises(OSError), no_garbage_collection(freeze=True):  # noqa: PT011
            import broken_import  # noqa: F401
        assert gc.isenabled()
        with no_garbage_collection(freeze=True):
            pass
        assert gc.get_freeze_count() > before
        gc.disable()
        with no_garbage_collection(freeze=True):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        sys.modules.pop("slow_import", None)


def test_a_command_called_from_python_keeps_no_garbage_of_the_caller(monkeypatch):
    class Model:
        pass

    monkeypatch.delitem(sys.modules, "newsrec.commands.configs", raising=False)
    model = Model()
    model.trainer = model
    alive = weakref.ref(model)
    main(["configs"])
    del model
    gc.collect()
    assert alive() is None


def test_the_options_of_a_run_are_written_whole_or_not_at_all(tmp_path):
    """A run that was killed here left an empty file, and no command could resume it."""
    seen = []

    class Parser:
        def dump(self, config, **options):
            seen.append((tmp_path / "config.yaml").read_text(encoding="utf-8"))
            return config

    (tmp_path / "config.yaml").write_text("old\n", encoding="utf-8")
    writer = RunConfig(Parser(), "new\n", save_to_log_dir=False)
    trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu")
    writer.setup(trainer, None, "fit")
    assert seen == ["old\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "new\n"


@pytest.mark.slow
def test_checkpoints_of_two_seeds_make_an_ensemble(mind_dir, plm_dir, tmp_path, capsys):
    best = []
    for seed, length in (("1", "12"), ("2", "9")):
        options = fit_options(mind_dir, plm_dir, tmp_path / seed)
        main([*options, f"--seed_everything={seed}", f"--data.max_tokens={length}",
              "--baselines=false"])  # fmt: skip
        best.append(str(tmp_path / seed / "checkpoints" / "best.ckpt"))

    def command(name, *options):
        return ["evaluate", *options, f"--data.root={mind_dir}", "--split=dev",
                f"--output={tmp_path / name}", "--trainer.accelerator=cpu"]  # fmt: skip

    def evaluate(name, *options):
        main(command(name, *options))
        with zipfile.ZipFile(tmp_path / name / "prediction.zip") as archive:
            lines = archive.read("prediction.txt").decode().splitlines()
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        return metrics, [json.loads(line.split(" ")[1]) for line in lines]

    (one, first), (two, second) = (
        evaluate(f"only{i}", "--ckpt_path", path) for i, path in enumerate(best)
    )
    assert "ensemble" not in one
    capsys.readouterr()
    metrics, found = evaluate("both", "--ckpt_path", *best, "--ensemble=mean_rank")
    said = capsys.readouterr().out
    assert f"mean_rank of {best[0]}, {best[1]} on dev" in said
    assert "dev chose some of these checkpoints" in said
    assert_reported(tmp_path / "both", metrics, said)
    for a, b, both in zip(first, second, found, strict=True):
        order = sorted(range(len(a)), key=lambda i: (a[i] + b[i], i))
        assert [both[i] for i in order] == list(range(1, len(a) + 1))
    assert first != second
    assert metrics["checkpoint_sha256"] == [one["checkpoint_sha256"], two["checkpoint_sha256"]]
    assert (metrics["ensemble"], metrics["selected_on"]) == ("mean_rank", "dev")
    assert metrics["trained_on"] == one["trained_on"]
    cosine = [result["baselines"]["cosine"]["auc"] for result in (one, metrics)]
    assert cosine[0] == cosine[1]  # of the first checkpoint's texts
    turned, again = evaluate("turned", "--ckpt_path", *best[::-1], "--ensemble=mean_score")
    assert again == evaluate("score", "--ckpt_path", *best, "--ensemble=mean_score")[1] != found
    assert turned["checkpoint_sha256"] == metrics["checkpoint_sha256"][::-1]
    main(["compare", str(tmp_path / "both"), str(tmp_path / "only0")])
    capsys.readouterr()

    fitted, _ = evaluate("fitted", "--ckpt_path", *best, "--ensemble=fitted", "--scores=true")
    said = capsys.readouterr().out
    assert "scored with weights learned on the others" in said
    assert_reported(tmp_path / "fitted", fitted, said, "scores.parquet")
    weights = fitted["fitted"]["members"]
    assert [row["name"] for row in weights] == best
    assert sum(row["weight"] for row in weights) == pytest.approx(1)
    for row, alone in zip(weights, (one, two), strict=True):
        assert row["auc"] == pytest.approx(alone["auc"], abs=1e-6)
        assert f"{row['weight']:.3f}" in said
    main([option.replace("=dev", "=test") for option in command(
        "hidden", "--ckpt_path", *best, "--ensemble=fitted")])  # fmt: skip
    hidden = json.loads((tmp_path / "hidden" / "metrics.json").read_text())
    assert hidden["fitted"]["members"] == weights  # dev's, whatever is reported
    assert not hidden["fitted"]["cross_fitted"]
    assert "Weights learned on dev, 2019-11-15:" in capsys.readouterr().out

    final = str(tmp_path / "final.ckpt")
    options = fit_options(mind_dir, plm_dir, tmp_path / "all")
    main([*options, "--data.train=train+dev", "--data.val=none", "--baselines=false"])
    shutil.copy(tmp_path / "all" / "checkpoints" / "last.ckpt", final)
    copy = str(tmp_path / "copy.ckpt")  # as last.ckpt where the last epoch was the best
    torch.save(torch.load(best[0], weights_only=True) | {"global_step": 7}, copy)
    for options, message in (
        (
            ["--ckpt_path", *best, best[0], "--ensemble=mean_rank"],
            f"{best[0]} has the same weights as",
        ),
        (["--ckpt_path", *best, copy, "--ensemble=mean_score"], f"{copy} has the same weights as"),
        (["--ckpt_path", *best], "Choose how to average their scores by --ensemble mean_score or"),
        (["--ckpt_path", best[0], final, "--ensemble=fitted"], f"{final} was trained on it"),
        (["--ckpt_path", best[0], "--ensemble=mean_rank"], "but one checkpoint is given"),
        (["--scorer=random", "--ensemble=mean_rank"], "but a baseline is given"),
        (["--ckpt_path", *best, "--ensemble=mean_rank", "--data.max_tokens=12"], f"{best[1]} was"),
        (["--ckpt_path", best[0], "no.ckpt", "--ensemble=mean_rank"], "no.ckpt does not exist"),
    ):
        assert message in refused(capsys, *command("refused", *options))
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_any_number_of_processes_gives_the_metrics_of_one(mind_dir, plm_dir, tmp_path):
    output = tmp_path / "run"
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    options = fit_options(mind_dir, plm_dir, output)
    options += ["--model.tune_layers=1", "--model.residual=true"]  # states by one, read by both
    done = run([*options, *ddp])  # Lightning starts the other one as a shell would
    assert done.returncode == 0, done.stderr
    # One folder for the news of train, one for those that dev adds.
    assert len(list(Path(mind_dir).glob(".newsrec/states-*"))) == 2
    best, other = str(output / "checkpoints" / "best.ckpt"), str(tmp_path / "other.ckpt")
    checkpoint = torch.load(best, weights_only=True)
    for weights in checkpoint["state_dict"].values():
        if weights.is_floating_point():
            weights += 0.05 * torch.randn_like(weights)
    torch.save(checkpoint, other)
    assert len((mind_dir / "dev" / "behaviors.tsv").read_text().splitlines()) == 23
    for case, ckpts, numbers in (
        # Three take 21 together; of the two that are left, the last process gets none.
        ("model", [best, "--data.eval_batch_size=7"], (1, 2, 3)),
        ("ensemble", [best, other, "--ensemble", "mean_score"], (1, 2)),
        ("fitted", [best, other, "--ensemble", "fitted"], (1, 2)),
    ):
        metrics, predictions = [], []
        for number in numbers:
            folder = tmp_path / f"{case}{number}"
            command = ["evaluate", "--ckpt_path", *ckpts, f"--data.root={mind_dir}", "--split=dev",
                       f"--output={folder}", "--trainer.accelerator=cpu"]  # fmt: skip
            if number == 1:
                main([*command, "--trainer.devices=1"])
            else:  # torchrun counts, not the option
                launch = ["--standalone", f"--nproc-per-node={number}"]
                done = run([*command, "--trainer.devices=1"], torchrun=launch)
                assert done.returncode == 0, done.stderr
            metrics.append(json.loads((folder / "metrics.json").read_text()))
            with zipfile.ZipFile(folder / "prediction.zip") as archive:
                predictions.append(archive.read("prediction.txt").splitlines())
        ids = [[line.split()[0] for line in lines] for lines in predictions]
        for number in range(1, len(numbers)):
            assert ids[number] == ids[0]
            for name in METRICS:
                assert metrics[number][name] == pytest.approx(metrics[0][name], abs=1e-4)
            if case == "fitted":
                weights = [[row["weight"] for row in m["fitted"]["members"]] for m in metrics]
                assert weights[number] == pytest.approx(weights[0], abs=1e-3)


@pytest.mark.slow
def test_two_processes_choose_by_the_unseen_news_of_one(mind_dir, plm_dir, tmp_path):
    output = tmp_path / "run"
    options = fit_options(mind_dir, plm_dir, output)
    options += ["--data.val_news=new", "--data.eval_batch_size=2", "--data.frozen_states=none"]
    launch = ["--standalone", "--nproc-per-node=2"]
    done = run([*options, "--baselines=false"], torchrun=launch)
    assert done.returncode == 0, done.stderr
    with (output / "metrics.csv").open() as file:
        logged = max(float(row["val/auc"]) for row in csv.DictReader(file) if row["val/auc"])
    best = output / "checkpoints" / "best.ckpt"
    main(["evaluate", f"--ckpt_path={best}", f"--data.root={mind_dir}", "--split=dev",
          f"--output={tmp_path / 'dev'}", "--trainer.accelerator=cpu", "--trainer.devices=1",
          "--baselines=false"])  # fmt: skip
    metrics = json.loads((tmp_path / "dev" / "metrics.json").read_text())
    assert metrics["unseen"]["auc"] == pytest.approx(logged, abs=1e-4)
