from dataclasses import asdict

import pytest

from newsrec.errors import UserError
from newsrec.model.fastformer import FastformerConfig
from newsrec.training.checkpoint.read import check_same_options, hyper_parameters
from newsrec.training.resume import resumed

SHAPE = asdict(FastformerConfig(heads=2))


def stored(**shape):
    """Return a checkpoint's options as a run before later options has written them."""
    old = {k: v for k, v in SHAPE.items() if k not in ("encoder", "share_layers")} | shape
    return {
        "hyper_parameters": {"dim": 16, "news": old, "user": old},
        "datamodule_hyper_parameters": {"root": "a", "batch_size": 32},
    }


def test_a_run_of_an_earlier_version_goes_on_with_the_defaults_of_later_options():
    options = {
        "model": {"dim": 16, "news": SHAPE, "user": SHAPE},
        "data": {"batch_size": 32, "batches": "random", "stale": 0},
    }
    check_same_options(stored(), options, "last.ckpt")


def test_a_run_from_before_the_residual_path_has_none():
    assert hyper_parameters(stored(), "model")["residual"] is False
    assert hyper_parameters(stored(), "data")["frozen_states"] == "fp32"
    with pytest.raises(UserError, match=r"model.residual is True, but last.ckpt was .* with False"):
        check_same_options(stored(), {"model": {"residual": True}}, "last.ckpt")


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("model", "dim", 32),
        ("model", "user", SHAPE | {"encoder": "transformer"}),
        ("model", "news", SHAPE | {"heads": 4}),
        ("data", "batch_size", 64),
        ("data", "batches", "user"),
    ],
)
def test_an_option_that_differs_is_refused_with_both_values(part, option, value):
    with pytest.raises(
        UserError, match=rf"{part}\.{option}[.a-z]* is .* but last.ckpt was trained with"
    ):
        check_same_options(stored(), {part: {option: value}}, "last.ckpt")


def test_the_field_of_a_shape_that_differs_is_named():
    options = {"model": {"news": SHAPE | {"heads": 4}}}
    with pytest.raises(UserError, match=r"model\.news\.heads is 4, but .* trained with 2\."):
        check_same_options(stored(), options, "last.ckpt")


@pytest.mark.parametrize(
    ("shared", "said"),
    [({"max_tokens": 12}, "data.max_tokens is 12"), ({"plm": "b"}, "model.plm is b")],
)
def test_a_value_that_model_and_data_share_is_named_as_the_option_that_was_given(shared, said):
    checkpoint = stored()
    for part in checkpoint.values():
        part |= {"max_tokens": 8, "plm": "a"}
    given = {"max_tokens": 8, "plm": "a"} | shared
    with pytest.raises(UserError, match=rf"^{said}, but last.ckpt was trained with"):
        resumed(checkpoint, "last.ckpt", given | {"precision": "fp32"}, given)
