import inspect
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.commands.parser_messages import explain, near_options
from newsrec.commands.written_options import Written, written_options
from newsrec.errors import UserError


def test_options_and_files_are_read_with_their_places(tmp_path):
    (tmp_path / "data.yaml").write_text("root: there\nfields: [title]\n")
    run = tmp_path / "run.yaml"
    run.write_text("seed_everything: 1\ndata: data.yaml\nmodel:\n  user:\n    heads: 2\n")
    written = written_options(["--model.dim=16", "--data.plm", "x", "-c", str(run)])
    assert written == [
        Written("model.dim", "--model.dim", "16"),
        Written("data.plm", "--data.plm", "x"),
        Written("seed_everything", f"{run}, line 1", "1"),
        Written("data.root", f"{tmp_path / 'data.yaml'}, line 1", "there"),
        Written("data.fields", f"{tmp_path / 'data.yaml'}, line 2", written[4].value),
        Written("model.user.heads", f"{run}, line 5", "2"),
    ]


def test_a_group_on_the_command_line_is_a_file(tmp_path):
    path = tmp_path / "group.yaml"
    path.write_text("max_history: 3\n")
    assert written_options(["--data", str(path)]) == [
        Written("data.max_history", f"{path}, line 1", "3")
    ]


def test_a_file_that_is_not_yaml_is_refused_with_its_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  fields: [title\n")
    with pytest.raises(UserError, match=f"{path}, line 3: not YAML"):
        written_options([f"--config={path}"])


def test_a_missing_file_is_left_to_the_parser_and_an_empty_one_refused(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert written_options([f"--config={tmp_path / 'none.yaml'}"]) == []
    with pytest.raises(UserError, match=r"empty\.yaml has no options"):
        written_options([f"--config={tmp_path / 'empty.yaml'}"])


def test_a_message_gets_the_place_and_the_nearest_option():
    written = [Written("data.max_histroy", "run.yaml, line 2", "3")]
    message = "Subcommand 'fit' does not accept option 'data.max_histroy'"
    said = explain(message, written, ["data.max_history", "data.root"])
    assert said == f"run.yaml, line 2: {message}. Did you mean data.max_history?"


def test_a_missing_reference_is_found_where_it_is_asked_for():
    written = [Written("data.root", "a", "x"), Written("data.npratio", "b", "${data.nowhere}")]
    assert explain("Interpolation key '.nowhere' not found", written, []).startswith("b: ")


def test_every_option_of_fit_is_described():
    from newsrec.data.datamodule import MindDataModule
    from newsrec.data.options import DataOptions
    from newsrec.model.fastformer import FastformerConfig
    from newsrec.model.plm.lora import LoraConfig
    from newsrec.training.module import RecommenderModule
    from newsrec.training.options import ModelOptions

    assert inspect.signature(MindDataModule) == inspect.signature(DataOptions)
    assert inspect.signature(RecommenderModule) == inspect.signature(ModelOptions)
    for part in (DataOptions, FastformerConfig, LoraConfig, ModelOptions):
        described = re.findall(r"^    (\w+): ", inspect.getdoc(part), re.M)
        assert described == list(inspect.signature(part).parameters)


PIECES = st.sampled_from(
    [
        'Parser key "data.seed": ',
        "Expected a <class 'int'>. Got value: ",
        "Does not validate against any of the Union subtypes Subtypes: [",
        "<class 'int'>, typing.Literal['a', 'b']",
        "] Errors: - Expected a ",
        "Given value type: <class 'str'> Given value: big",
        "argument --data.seed: ",
        "expected one argument",
        "invalid choice: 'x' (choose from 'a', 'b')",
        "unrecognized arguments: --x",
        "the following arguments are required: a, b",
        "Unable to load config 'x' - ",
        "File does not exist: 'x'",
        "option 'data.sede'",
        "\n  ",
    ]
)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(PIECES | st.text(max_size=12), max_size=6).map("".join))
def test_any_message_of_a_parser_can_be_worded(message):
    written = [Written("data.seed", "run.yaml, line 3", "${x}"), Written("x", "--x", "1")]
    said = explain(message, written, ["data.seed", "model.lr", "k"], "evaluate")
    assert isinstance(said, str)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lr", ["model.lr"]),
        ("ckpt-path", ["ckpt_path"]),
        ("epochs", ["trainer.max_epochs"]),
        ("max_epoch", ["trainer.max_epochs"]),
        ("heads", ["model.news.heads", "model.user.heads"]),
        ("data.batchsize", ["data.batch_size"]),
        ("zebra", []),
    ],
)
def test_an_option_is_found_by_its_end_its_spelling_or_another_programs_name(given, meant):
    known = ["ckpt_path", "data.batch_size", "data.batch_size+", "model.lr", "model.news.heads"]
    known += ["model.user.heads", "trainer.max_epochs", "k"]
    assert near_options(given, known) == meant


def test_the_place_is_where_the_value_that_counts_was_written():
    written = [
        Written("data.seed", "run.yaml, line 3", "3"),
        Written("data.seed", "--data.seed", "b"),
    ]
    said = "Parser key \"data.seed\":\n  Expected a <class 'int'>. Got value: "
    assert explain(said + "b", written, []).startswith("--data.seed is 'b'")
    assert explain(said + "3", written, []).startswith("run.yaml, line 3: data.seed is '3'")
