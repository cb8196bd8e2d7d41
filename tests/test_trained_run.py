"""A trained model and its data from a checkpoint alone."""

import checkpoints
import pytest
import torch

from newsrec.errors import UserError
from newsrec.files import file_hash
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.trained_run import TrainedRun


@pytest.fixture(scope="module")
def path(tmp_path_factory, plm_dir):
    return checkpoints.train(tmp_path_factory.mktemp("trained"), plm_dir)


def test_a_checkpoint_brings_its_model_and_its_data(path):
    run = TrainedRun.open(path)
    assert run.data.plm == run.module.plm
    assert run.data is run.data
    assert not run.module.training
    assert run.data.eval_split == "dev"
    vectors = encode_catalogue(run.module.recommender, run.data.catalogue)
    assert torch.isfinite(vectors).all()


def test_root_split_and_loader_options_are_ones_own(path, mind_dir):
    run = TrainedRun.open(path, mind_dir, "test", eval_batch_size=4)
    (batch, *_) = run.data.predict_dataloader()
    assert len(batch.row) == 4
    assert batch.labels is None
    assert run.data.root == str(mind_dir)


def test_the_tokenizer_is_the_checkpoints(path, tmp_path):
    content = checkpoints.content(path)
    content["datamodule_hyper_parameters"]["plm"] = "a/name/that/nobody/has"
    torch.save(content, tmp_path / "moved.ckpt")
    assert TrainedRun.open(tmp_path / "moved.ckpt").data.catalogue is not None


def test_what_is_expected_otherwise_is_refused(path):
    with pytest.raises(UserError, match=r"data.max_history is 3, but .* with 50"):
        TrainedRun.open(path, expected={"data": {"max_history": 3}})
    with pytest.raises(UserError, match="it has seen that day"):
        TrainedRun.open(path, split="last_day")


def test_provenance_names_the_file_and_data_that_differ(path, mind_dir):
    said = TrainedRun.open(path, mind_dir).provenance("bf16", by_auto=True)
    assert said["checkpoint_sha256"] == file_hash(path)
    assert (said["precision"], said["precision_by_auto"]) == ("bf16", True)
    assert said["selected_on"] == "dev"
    assert set(said["trained_on"]) == {"train"}
    assert said["other_data"] == []
    behaviors = mind_dir / "dev" / "behaviors.tsv"
    behaviors.write_bytes(b"".join(behaviors.read_bytes().splitlines(keepends=True)[1:]))
    assert TrainedRun.open(path, mind_dir).provenance("fp32")["other_data"] == ["dev"]
