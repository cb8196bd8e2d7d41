"""The Python API does what the commands do: the same weights, metrics and files."""

import json
import re
import shutil
import subprocess
import sys
from operator import attrgetter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import fit_options
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, Trainer, seed_everything

import newsrec as nr
from newsrec.__main__ import main
from newsrec.spoken import in_python
from newsrec.training.checkpoint.read import read_checkpoint
from newsrec.training.run import DEFAULTS

SHAPE = {"heads": 2, "ffn": 16}
USER = SHAPE | {"positions": "recency"}
TRAINER = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def made(mind_dir, plm_dir, **more):
    """Return model and data with the options that ``fit_options`` gives the command."""
    model = nr.RecommenderModule(
        plm=str(plm_dir), dim=16, news=SHAPE, user=USER, max_tokens=12, precision="fp32"
    )
    data = {"seed": 42, "max_tokens": 12} | more
    return model, nr.MindDataModule(str(mind_dir), plm=str(plm_dir), **data)


def fit(mind_dir, plm_dir, output, **more):
    return nr.fit(*made(mind_dir, plm_dir), output, **({"max_epochs": 2} | TRAINER | more))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory, plm_dir):
    """A data folder with a run by ``newsrec.fit``, which tests only read."""
    from conftest import tiny_behaviors, tiny_news, write_mind

    folder = tmp_path_factory.mktemp("api")
    mind = write_mind(folder / "mind", tiny_news(), tiny_behaviors())
    return mind, fit(mind, plm_dir, folder / "run"), folder


def test_the_command_trains_the_same_weights(world, plm_dir, tmp_path):
    mind, run, _ = world
    main(fit_options(mind, plm_dir, tmp_path / "run"))
    for name in ("best", "last"):
        assert_same_weights(run.checkpoint(name), nr.RunFolder(tmp_path / "run").checkpoint(name))
    assert {p.name for p in run.path.iterdir()} == {p.name for p in (tmp_path / "run").iterdir()}


def test_a_bare_trainer_trains_the_same_weights_from_kept_states(world, plm_dir, tmp_path):
    mind, run, _ = world
    model, data = made(mind, plm_dir)
    seed_everything(42, verbose=False)
    options = DEFAULTS | TRAINER | {"max_epochs": 2, "logger": False}
    trainer = Trainer(**options, default_root_dir=tmp_path)
    trainer.fit(model, datamodule=data)
    assert data.states is not None
    trained = weights(run.checkpoint("last"))
    own = model.state_dict()
    assert [name for name in trained if not torch.equal(own[name], trained[name])] == []


class Crash(Callback):
    """Ends the run like a bug would, in the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyError("crash")


def test_command_and_api_resume_a_run_that_the_api_began(world, plm_dir, tmp_path):
    mind, run, _ = world
    with pytest.raises(KeyError):
        fit(mind, plm_dir, tmp_path / "a", callbacks=[Crash()])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    fit(mind, plm_dir, tmp_path / "a", resume="last")
    main(["fit", "--ckpt_path=last", f"--output={tmp_path / 'b'}", "--trainer.accelerator=cpu"])
    for folder in ("a", "b"):
        assert_same_weights(
            run.checkpoint("last"), nr.RunFolder(tmp_path / folder).checkpoint("last")
        )


def test_evaluate_gives_what_the_command_writes(world, tmp_path, capsys):
    mind, run, _ = world
    own = run.evaluate("dev", **TRAINER)
    main(["evaluate", f"--ckpt_path={run.checkpoint()}", f"--data.root={mind}", "--split=dev",
          f"--output={tmp_path / 'dev'}", "--trainer.accelerator=cpu"])  # fmt: skip
    assert own == json.loads((tmp_path / "dev" / "metrics.json").read_text())
    assert run.evaluate("dev", tmp_path / "again", **TRAINER) == own
    names = {path.name for path in (tmp_path / "dev").iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    assert run.summary["auc"] == own["auc"]
    assert run.history["val/auc"].max() == pytest.approx(own["auc"], abs=1e-6)


def test_scores_are_those_that_the_metrics_come_from(world):
    _, run, _ = world
    table = run.scores("dev", **TRAINER)
    assert list(table) == ["impression_id", "user_id", "news_id", "score", "label"]
    assert "N404" not in set(table["news_id"])  # ids that news.tsv lacks are None
    metrics = run.evaluate("dev", baselines=False, **TRAINER)
    found = nr.metrics_of_table(table)
    assert found == {name: metrics[name] for name in found}
    assert "label" not in run.scores("test", **TRAINER)


@pytest.mark.slow
def test_an_export_recommends_with_the_runs_scores(world, tmp_path):
    _, run, _ = world
    recommender = nr.Recommender.load(run.export(tmp_path / "export"))
    data = run.load_model()
    best = recommender.recommend(["N1", "N2"], k=3)
    assert len(best.news_ids) == 3
    assert data.training is False


def test_mistakes_are_named(world, plm_dir, tmp_path, mind_dir):
    mind, run, _ = world
    with pytest.raises(TypeError, match=r"no argument 'max_epoch'\. Did you mean 'max_epochs'"):
        nr.fit(*made(mind, plm_dir), tmp_path / "x", max_epoch=1)
    with pytest.raises(nr.UserError, match=r"there is no .*last\.ckpt"):
        fit(mind, plm_dir, tmp_path / "x", resume="last")
    with pytest.raises(nr.UserError, match="resume='last'"):
        fit(mind, plm_dir, run.path)
    other = nr.RecommenderModule(plm=str(plm_dir), dim=8, news=SHAPE, user=USER, max_tokens=12)
    model, data = made(mind, plm_dir)
    with pytest.raises(nr.UserError, match=r"model\.dim is 8, but .* was trained with 16"):
        nr.fit(other, data, run.path, resume="last", **TRAINER)
    with pytest.raises(nr.UserError, match="has no checkpoint"):
        nr.RunFolder(tmp_path)
    longer = nr.MindDataModule(str(mind), plm=str(plm_dir))
    with pytest.raises(nr.UserError, match="max_tokens"):
        nr.fit(model, longer, tmp_path / "y", **TRAINER)
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_one_callback_needs_no_list_and_anything_else_is_named(world, plm_dir, tmp_path):
    class Steps(Callback):
        done = 0

        def on_train_batch_end(self, *_):
            self.done += 1

    mind, _, _ = world
    steps = Steps()
    for callbacks in (steps, None):
        fit(mind, plm_dir, tmp_path / str(callbacks is None), callbacks=callbacks, max_steps=1)
    assert steps.done == 1
    for wrong in ("x", Steps, [Steps]):
        with pytest.raises(TypeError, match="not a Callback of Lightning"):
            fit(mind, plm_dir, tmp_path / "x", callbacks=wrong)
    model, data = made(mind, plm_dir)
    with pytest.raises(TypeError, match="takes a RecommenderModule as model, not MindDataModule"):
        nr.fit(data, model)
    with pytest.raises(TypeError, match="takes a MindDataModule as data, not str"):
        nr.fit(model, "data/demo")
    assert not (tmp_path / "x").exists()


def test_a_run_without_validation_says_which_checkpoint_there_is(world, plm_dir, tmp_path):
    mind, _, _ = world
    run = fit(mind, plm_dir, tmp_path / "run", limit_val_batches=0, max_steps=1, max_epochs=-1)
    uses = (run.evaluate, run.scores, run.load_model, lambda: run.export(tmp_path / "export"))
    for use in uses:
        with pytest.raises(
            nr.UserError, match=r"no validation was reached\. Give checkpoint='last'"
        ):
            use()
    assert not run.load_model("last").training
    assert read_checkpoint(run.checkpoint("last"))["newsrec"]["selected_on"] is None
    assert run.history.empty
    with pytest.raises(nr.UserError, match=r"'fp8'\. Choose one of fp32, bf16, auto"):
        run.evaluate(checkpoint="last", precision="fp8", **TRAINER)


def test_a_trial_keeps_nothing_and_leaves_its_folder_for_the_run(world, plm_dir, tmp_path):
    mind, _, _ = world
    folder = tmp_path / "run"
    trial = fit(mind, plm_dir, folder, fast_dev_run=True)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert trial.history.empty
    with pytest.raises(nr.UserError, match="a trial with fast_dev_run keeps none"):
        trial.evaluate()
    run = fit(mind, plm_dir, folder, max_steps=2)
    before = run.checkpoint("last").read_bytes()
    fit(mind, plm_dir, folder, resume="last", fast_dev_run=True)
    assert run.checkpoint("last").read_bytes() == before


def test_the_public_names_are_there_and_importing_them_is_lazy():
    for name in nr.__all__:
        assert getattr(nr, name).__name__ == name
    assert set(nr.__all__) == set(nr._HOMES) <= set(dir(nr))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nr.nothing  # noqa: B018
    heavy = "{'torch', 'lightning', 'pandas', 'numpy'} & set(sys.modules)"
    code = f"import sys, newsrec; dir(newsrec); newsrec.UserError; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"patience": "x"}, "patience='x'; give a number of validations, 1 or more, or None"),
        ({"patience": 0}, "patience=0; give a number of validations"),
        ({"save_every": 1.5}, r"save_every=1\.5; give a number of steps"),
        ({"threads": True}, "threads=True; give a number of threads"),
        ({"baselines": None}, "baselines=None; give True or False"),
        ({"resume": True}, "resume=True; give 'last', 'best', 'auto', the path of a checkpoint"),
        ({"output": 3}, "output=3; give a folder, or None"),
        ({"logger": "tb"}, "logger='tb'; give a Logger of Lightning"),
        ({"logger": ["tb"]}, r"logger=\['tb'\]; give a Logger of Lightning"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_is_allowed(plm_dir, tmp_path, given, said):
    with pytest.raises(TypeError, match=said):
        nr.fit(*made(tmp_path, plm_dir), **({"output": tmp_path / "x"} | TRAINER | given))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("--output x is full. Try another --output.", "output x is full. Try another output."),
        ("by --ckpt_path last, not --ckpt_path X", "by resume='last', not checkpoint X"),
        ("--trainer.max_steps or --model.dim", "max_steps or model.dim"),
        ("Leave it out by --news_encoder false: x", "Leave it out by news_encoder=False: x"),
        ("`fit --ckpt_path last` or --data.val none.", "`fit --ckpt_path last` or data.val none."),
    ],
)  # fmt: skip
def test_messages_for_python_name_no_option_of_the_command_line(said, expected):
    class Special(nr.UserError):
        pass

    @in_python
    def refuse(value, *, more):
        raise Special(value + more)

    with pytest.raises(Special) as error:
        refuse(said, more="")
    assert str(error.value) == expected
    assert refuse.__name__ == "refuse"


def test_public_functions_speak_python(world, tmp_path):
    _, run, _ = world
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    mistakes = [
        lambda: run.export(tmp_path / "full"),
        lambda: run.evaluate("last_day", **TRAINER),
        lambda: run.evaluate("dev", precision="fp8", **TRAINER),
        lambda: nr.simulate(tmp_path / "full"),
        lambda: nr.simulate(tmp_path / "new", preset="demoo"),
        lambda: nr.open_mind(tmp_path / "full"),
        lambda: nr.PretrainedRecommender.from_checkpoint(tmp_path / "no.ckpt"),
        lambda: run.pretrained().save_pretrained(tmp_path / "full"),
    ]
    for mistake in mistakes:
        with pytest.raises(nr.UserError) as error:
            mistake()
        assert "--" not in re.sub("`[^`]*`", "", str(error.value))


@pytest.mark.parametrize("library", ["polars", "datasets"])
def test_tables_of_the_real_libraries_give_the_same_metrics(library):
    module = pytest.importorskip(library)
    table = module.DataFrame if library == "polars" else module.Dataset.from_dict
    nested = {"score": [[0.9, 0.2, 0.4], [0.3, 0.8]], "label": [[1, 0, 0], [True, False]]}
    nested["label"][1] = [1, 0]
    flat = {name: [v for row in rows for v in row] for name, rows in nested.items()}
    expected = nr.mind_metrics(np.array(flat["score"]), np.array(flat["label"]), [0, 3, 5])
    assert same(nr.metrics_of_table(table(nested)), expected)
    order = [3, 0, 1, 4, 2]  # interleaved
    mixed = {name: [values[i] for i in order] for name, values in flat.items()}
    for ids in ([7, 5, 5, 7, 5], ["b", "a", "a", "b", "a"]):
        assert same(nr.metrics_of_table(table(mixed | {"impression_id": ids})), expected)
    narrow = pa.table(mixed | {"impression_id": ["b", "a", "a", "b", "a"]})
    types = {"score": pa.float32(), "label": pa.bool_(), "impression_id": pa.string()}
    narrow = narrow.cast(pa.schema(types))
    cast = module.from_arrow(narrow) if library == "polars" else module.Dataset(narrow)
    assert nr.metrics_of_table(cast)["auc"] == pytest.approx(expected["auc"])
    with pytest.raises(ValueError, match=r"no column 'click'\. It has 'score', 'label'"):
        nr.metrics_of_table(table(nested), label="click")
    with pytest.raises(ValueError, match="Row 2 has no value in 'impression_id'"):
        nr.metrics_of_table(table(mixed | {"impression_id": ["b", "a", None, "b", "a"]}))


def test_a_runs_scores_may_pass_through_other_tables(world):
    _, run, _ = world
    scores = run.scores("dev", **TRAINER)
    expected = nr.metrics_of_table(scores)
    for library, build in (("polars", "from_pandas"), ("datasets", "Dataset.from_pandas")):
        module = pytest.importorskip(library)
        assert same(nr.metrics_of_table(attrgetter(build)(module)(scores)), expected)


class Plain:
    """A table whose columns are neither arrays nor lists, as those of ``datasets``."""

    def __init__(self, columns):
        self.columns = columns

    def __getitem__(self, name):
        values = self.columns[name]
        return Column(values)


class Column:
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)


TABLES = {
    "pandas": pd.DataFrame,
    "pyarrow": pa.table,
    "dict": dict,
    "plain": Plain,
}


@given(st.lists(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=6),
                min_size=1, max_size=8), st.integers(0, 99))  # fmt: skip
@pytest.mark.parametrize("kind", TABLES)
def test_metrics_of_a_table_are_those_of_its_arrays(kind, impressions, seed):
    scores = [[float(score) for score, _ in one] for one in impressions]
    labels = [[int(label) for _, label in one] for one in impressions]
    offsets = np.cumsum([0, *map(len, impressions)])
    expected = nr.mind_metrics(np.concatenate(scores), np.concatenate(labels), offsets)
    nested = TABLES[kind]({"s": scores, "l": labels})
    assert same(nr.metrics_of_table(nested, score="s", label="l"), expected)
    owners = [i for i, one in enumerate(impressions) for _ in one]
    np.random.default_rng(seed).shuffle(owners)  # interleaved, the order within each is kept
    left = [iter(one) for one in impressions]
    mixed = [next(left[owner]) for owner in owners]
    flat = {
        "impression_id": [f"i{owner}" for owner in owners],
        "score": [float(score) for score, _ in mixed],
        "label": [int(label) for _, label in mixed],
    }
    assert same(nr.metrics_of_table(TABLES[kind](flat)), expected)


def same(a, b):
    return a == pytest.approx(b, nan_ok=True, abs=1e-12)


def test_wrong_tables_are_named():
    table = pd.DataFrame({"score": [[1.0, 2.0], [1.0]], "label": [[0, 1], [1, 0]]})
    with pytest.raises(ValueError, match="Row 1 has 1 values in 'score' and 2 in 'label'"):
        nr.metrics_of_table(table)
    with pytest.raises(ValueError, match=r"no column 'click'\. It has 'score', 'label'"):
        nr.metrics_of_table(table, label="click")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"impression_id": [1, 1]}, "'score' has 3 rows and 'impression_id' has 2"),
        ({"label": [1, 0]}, "'score' has 3 rows and 'label' has 2"),
        ({"impression_id": [1, 1, None]}, "Row 2 has no value in 'impression_id'"),
        ({"impression_id": ["a", float("nan"), "b"]}, "Row 1 has no value in 'impression_id'"),
        ({"label": [[1], [0], [0]]}, "Row 0 has a list in 'label'"),
        ({"score": [[1.0], None, [2.0]], "label": [[1], [0], [0]]}, "Row 1 has no list in 'score'"),
    ],
)
def test_columns_that_do_not_belong_together_are_named(columns, said):
    table = {"impression_id": [1, 1, 1], "score": [0.5, 0.1, 0.2], "label": [1, 0, 0]} | columns
    with pytest.raises(ValueError, match=said):
        nr.metrics_of_table(table)
