"""Runs that end without a validation, are finished already, or see the same batches again."""

import json
import shutil

import pytest
import torch
from conftest import fit_options

from newsrec.__main__ import main
from newsrec.data.datamodule import MindDataModule
from newsrec.report.closing import next_commands


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level("INFO", "newsrec")


def test_a_finished_run_says_that_nothing_is_left_and_how_to_go_on(
    mind_dir, plm_dir, tmp_path, caplog
):
    options = [*fit_options(mind_dir, plm_dir, tmp_path / "run"), "--baselines=false"]
    main(options)
    assert "This run is finished" not in caplog.text
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)["global_step"]
    main([*options, "--ckpt_path=last"])
    assert "2 of 2 epochs are done, so no step is left" in caplog.text
    assert "--trainer.max_epochs 4" in caplog.text
    assert torch.load(last, weights_only=True)["global_step"] == before
    caplog.clear()
    main([*options, "--ckpt_path=last", "--trainer.max_epochs=3"])
    assert "This run is finished" not in caplog.text
    assert torch.load(last, weights_only=True)["global_step"] == before // 2 * 3


def test_a_trial_run_names_no_checkpoint_that_is_not_there(mind_dir, plm_dir, tmp_path, capsys):
    main([*fit_options(mind_dir, plm_dir, tmp_path / "run"), "--trainer.fast_dev_run=true"])
    said = capsys.readouterr().out
    assert "1 step of training and validation went well" in said
    assert ".ckpt" not in said
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    main([*fit_options(mind_dir, plm_dir, tmp_path / "run"), "--trainer.limit_val_batches=0"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"Last checkpoint: {last}" in capsys.readouterr().out
    assert last.is_file()


def test_overfitting_some_batches_trains_on_the_very_same_ones(
    mind_dir, plm_dir, tmp_path, monkeypatch
):
    seen: list[tuple] = []

    from newsrec.training.module import RecommenderModule

    step = RecommenderModule.training_step

    def watched(self, batch, batch_idx):
        seen.append((batch_idx, batch.candidates.tolist(), batch.token_ids.tolist()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(RecommenderModule, "training_step", watched)
    options = fit_options(mind_dir, plm_dir, tmp_path / "run")
    main([*options, "--data.batch_size=8", "--trainer.overfit_batches=2", "--baselines=false"])
    assert [number for number, *_ in seen] == [0, 1, 0, 1]
    assert seen[:2] == seen[2:]
    assert seen[0][1] != seen[1][1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["run"]["steps"] == 4


def test_a_batch_larger_than_an_epoch_is_said(mind_dir, plm_dir, tmp_path, caplog):
    options = fit_options(mind_dir, plm_dir, tmp_path / "run")
    main([*options, "--data.batch_size=1000000000000", "--baselines=false"])
    assert "data.batch_size is 1,000,000,000,000, more than the 51 samples" in caplog.text


def test_a_run_that_the_last_day_chose_names_it_to_evaluate(mind_dir, plm_dir):
    path = mind_dir / "train" / "behaviors.tsv"
    path.write_bytes(path.read_bytes().replace(b"11/11/2019", b"11/10/2019", 20))
    shutil.rmtree(mind_dir / "dev")
    data = MindDataModule(root=str(mind_dir), plm=str(plm_dir), val="last_day")
    data.setup("fit")
    first, second, *_, last = next_commands(data, "best.ckpt", "run").splitlines()
    assert "evaluate" in first
    assert "--split last_day" in first
    assert "--split test" in second
    assert last.endswith(f"serve exports/run --data.root {mind_dir}")
