"""Checkpoints that were altered: each is refused in a sentence that names file, place and value."""

import checkpoints
import pytest
import torch

from newsrec.errors import UserError
from newsrec.training.checkpoint.read import read_checkpoint
from newsrec.training.module import RecommenderModule


@pytest.fixture(scope="module")
def trained(tmp_path_factory, plm_dir):
    return checkpoints.train(tmp_path_factory.mktemp("checkpoint"), plm_dir)


@pytest.fixture
def altered(trained, tmp_path):
    """Return a function that writes the checkpoint with a value put somewhere, or taken out."""

    def write(place, *value):
        checkpoint = node = checkpoints.content(trained)
        *way, last = place
        for key in way:
            node = node[key]
        if value:
            node[last] = value[0]
        else:
            del node[last]
        torch.save(checkpoint, tmp_path / "altered.ckpt")
        return tmp_path / "altered.ckpt"

    return write


PLM = ("newsrec", "plm_config")
WEIGHT = "recommender.news_encoder.project.weight"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (PLM, [], "newsrec.plm_config is missing"),
        (("hyper_parameters",), [], "hyper_parameters is missing"),
        (("state_dict",), [], "state_dict is missing"),
        (("state_dict", WEIGHT), [], f"state_dict lacks 1 weights, such as '{WEIGHT}'"),
        (("newsrec", "tokenizer_json"), ['{"a": '], "tokenizer_json holds no tokenizer"),
        (("hyper_parameters", "dim"), [10**9], "hyper_parameters.dim is 1000000000, which no"),
        (("hyper_parameters", "dim"), [32], "and should have [32, 32]"),
        (("hyper_parameters", "news"), ["plain"], "news is 'plain', and should be a table"),
        (PLM, ["bert"], "newsrec.plm_config is 'bert', and should be a table"),
        ((*PLM, "attn_implementation"), ["flash_attention_2"], "may be sdpa, eager, newsrec_pack"),
        ((*PLM, "_attn_implementation"), ["kernels-community/flash"], "others load packages"),
        ((*PLM, "quantization_config"), [{"a": 1}], "would load or download other packages"),
        ((*PLM, "model_type"), ["none_such"], "no model can be built from it (ValueError"),
        ((*PLM, "num_hidden_layers"), [10**9], "num_hidden_layers is 1000000000, which no PLM"),
        ((*PLM, "num_hidden_layers"), [10**5], "more parts than there are weights"),
        ((*PLM, "hidden_size"), [10**6], "has shape [226, 32], and should have [226, 1000000]"),
        ((*PLM, "layer_norm_eps"), [float("nan")], "layer_norm_eps is nan, and should be a plain"),
        (("hyper_parameters", "lr"), ["fast"], "lr is 'fast', and should be a finite number"),
        (("hyper_parameters", "colour"), [1], "has 'colour', an option that this version does not"),
        (("datamodule_hyper_parameters", "fields"), ["title"], "fields is 'title', and should"),
        (("datamodule_hyper_parameters", "max_tokens"), [10**9], "and the model's is 32"),
        (("state_dict", WEIGHT), [torch.zeros(1).expand(16, 32)], "numbers, and the file holds"),
        (("state_dict", WEIGHT), [torch.zeros(16, 32).to_sparse()], "numbers, and should"),
        (("global_step",), [-1], "global_step is -1, and should be 0 or more"),
    ],
)  # fmt: skip
def test_an_altered_checkpoint_is_refused_with_file_and_place(altered, place, value, said):
    path = altered(place, *value)
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"--ckpt_path {path} is not as `python -m newsrec fit` wrote it: ")
    assert said in message
    assert message.endswith("Copy the file again, give another one, or train again.")


def test_a_refusal_names_the_option_that_gave_the_file(altered):
    path = altered(("global_step",), -1)
    with pytest.raises(UserError, match=rf"^FOLDER {path} is not as .*global_step is -1"):
        read_checkpoint(path, option="FOLDER")


def test_a_checkpoint_of_the_first_version_loads(trained, tmp_path):
    """Its options were fewer, and so was what stood under ``newsrec``."""
    checkpoint = checkpoints.content(trained)
    expected = checkpoints.answers(trained)
    for later in ("plm_layers", "checkpoint_activations", "torch_compile", "gate_lr", "schedule"):
        del checkpoint["hyper_parameters"][later]
    for later in ("stale", "frozen_states", "batches", "tokens_per_batch", "on_bad_line"):
        del checkpoint["datamodule_hyper_parameters"][later]
    for later in ("val_days", "val_news"):
        del checkpoint["datamodule_hyper_parameters"][later]
    for part in ("news", "user"):
        for later in ("encoder", "share_layers", "pooling"):
            del checkpoint["hyper_parameters"][part][later]
    for later in ("windows", "auto_precision", "selected_news"):
        del checkpoint["newsrec"][later]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert torch.equal(checkpoints.answers(tmp_path / "old.ckpt"), expected)


def test_pointers_to_code_in_a_plms_configuration_are_taken_out(altered, trained):
    path = altered(PLM, checkpoints.content(trained)["newsrec"]["plm_config"] | {
        "auto_map": {"AutoModel": "stranger/model--code.Evil"}, "trust_remote_code": True,
        "attn_implementation": "newsrec_packed",
    })  # fmt: skip
    config = read_checkpoint(path)["newsrec"]["plm_config"]
    assert "auto_map" not in config
    assert "trust_remote_code" not in config
    assert torch.equal(checkpoints.answers(path), checkpoints.answers(trained))


def test_a_model_that_only_the_weights_show_to_be_wrong_is_refused_with_its_file(trained):
    checkpoint = read_checkpoint(trained)
    checkpoint["state_dict"].pop(WEIGHT)
    with pytest.raises(UserError, match=rf"--ckpt_path {trained} is not .*{WEIGHT}"):
        RecommenderModule.from_checkpoint(checkpoint, trained)
    checkpoint["newsrec"]["plm_config"]["hidden_act"] = "none_such"
    with pytest.raises(UserError, match=r"The checkpoint is not .*none_such"):
        RecommenderModule.from_checkpoint(checkpoint)


def test_a_value_that_only_a_forward_pass_uses_is_refused_before_any_data_is_read(altered):
    path = altered((*PLM, "chunk_size_feed_forward"), [])
    with pytest.raises(UserError, match=r"altered\.ckpt is not .*no model can be built from it"):
        RecommenderModule.load_from_checkpoint(path)


def test_reading_a_checkpoint_draws_no_random_number(trained):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    read_checkpoint(trained)
    assert torch.equal(torch.rand(4), expected)
