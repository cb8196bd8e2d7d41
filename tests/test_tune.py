"""``tune`` searches, ends bad trials early, goes on after a kill, and says what is wrong."""

import csv
import json
import math
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, fit_options, refused
from hypothesis import given, settings
from hypothesis import strategies as st

import newsrec as nr
from newsrec.__main__ import main
from newsrec.commands.tune import own_first
from newsrec.errors import UserError
from newsrec.tuning.report import draw_tuning, print_tuning, write_trials
from newsrec.tuning.space import as_key, check_space, distributions, drawn, inside, read_space
from newsrec.tuning.trial import AucReport, Trial, Tuning

optuna = pytest.importorskip("optuna")

SPACE = {
    "x": {"low": -1.0, "high": 1.0},
    "n": {"low": 1, "high": 8},
    "kind": ["a", "b", ["c", "d"]],
}


class Landscape:
    """A training whose AUC is known: it depends on the options, and rises with each epoch."""

    def __init__(self, epochs=4, fails=lambda number: None):
        self.epochs, self.fails = epochs, fails
        self.seen, self.epochs_done = [], []

    def auc(self, options):
        return 0.9 - 0.1 * (options["x"] - 0.3) ** 2 - 0.01 * options["n"]

    def __call__(self, options, folder, callbacks):
        number = len(self.seen)
        self.seen.append(options)
        self.fails(number)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "metrics.csv").write_text("step\n")
        trainer = SimpleNamespace(
            sanity_checking=False, should_stop=False, max_epochs=self.epochs, current_epoch=0
        )
        for epoch in range(self.epochs):
            trainer.current_epoch = epoch
            value = self.auc(options) * (epoch + 1) / self.epochs
            trainer.callback_metrics = {"val/auc": torch.tensor(value, dtype=torch.float64)}
            for callback in callbacks:
                callback.on_validation_end(trainer, None)
            if trainer.should_stop:
                break
        self.epochs_done.append(epoch + 1)


def test_the_best_trial_is_the_one_with_the_highest_auc(tmp_path):
    land = Landscape()
    tuning = nr.tune(land, SPACE, tmp_path / "study", trials=12, seed=3, pruner="none")
    aucs = [land.auc(options) for options in land.seen]
    assert [trial.auc for trial in tuning.trials] == pytest.approx(aucs)
    assert tuning.best.auc == pytest.approx(max(aucs))
    assert tuning.best.options == land.seen[aucs.index(max(aucs))]
    assert {trial.validations for trial in tuning.trials} == {4}
    assert all(-1 <= seen["x"] <= 1 and seen["n"] in range(1, 9) for seen in land.seen)
    assert all(seen["kind"] in SPACE["kind"] for seen in land.seen)
    assert any(seen["kind"] == ["c", "d"] for seen in land.seen)
    assert sum(tuning.importance.values()) == pytest.approx(1)
    assert min(tuning.importance, key=tuning.importance.get) == "kind"  # it has no effect
    kept = [trial for trial in tuning.trials if (tuning.folder(trial) / "checkpoints").is_dir()]
    assert kept == [tuning.best]


@pytest.mark.slow
def test_draws_depend_on_the_seed_alone(tmp_path):
    lands = [Landscape() for _ in range(3)]
    for i, (land, seed) in enumerate(zip(lands, (1, 1, 2), strict=True)):
        nr.tune(land, SPACE, tmp_path / str(i), trials=4, seed=seed)
    assert lands[0].seen == lands[1].seen != lands[2].seen


def test_the_first_trial_has_the_options_that_were_given(tmp_path):
    land = Landscape()
    first = {"x": 0.25, "n": 99, "kind": ["c", "d"]}  # n lies outside, so it is drawn
    nr.tune(land, SPACE, tmp_path / "study", trials=1, first=first, keep="all")
    assert land.seen[0] | {"n": 99} == first


@pytest.mark.parametrize("pruner", ["median", pytest.param("hyperband", marks=pytest.mark.slow)])
def test_bad_trials_end_early_and_the_best_never(tmp_path, pruner):
    land = Landscape(epochs=5)
    tuning = nr.tune(land, SPACE, tmp_path / "study", trials=16, pruner=pruner)
    pruned = [trial for trial in tuning.trials if trial.state == "pruned"]
    assert 0 < len(pruned) < 14
    assert all(trial.validations < 5 for trial in pruned)
    assert [trial.validations for trial in tuning.trials] == land.epochs_done
    complete = [trial for trial in tuning.trials if trial.state == "complete"]
    assert all(trial.validations == 5 for trial in complete)
    if pruner == "median":  # a plain loop over what the others had after as many validations
        for trial in pruned:
            before = [t for t in tuning.trials[: trial.number] if t.validations == 5]
            step = trial.validations / 5
            others = sorted(land.auc(t.options) * step for t in before)
            assert land.auc(trial.options) * step < others[len(others) // 2]


@pytest.mark.slow
def test_a_killed_study_goes_on_as_if_it_had_never_stopped(tmp_path, caplog):
    caplog.set_level("INFO", "newsrec")
    whole = Landscape()
    expected = nr.tune(whole, SPACE, tmp_path / "whole", trials=6)

    def killed_in(trial):
        def end(number):
            if number == trial:
                raise MemoryError("as if killed")

        return end

    part = Landscape(fails=killed_in(3))
    with pytest.raises(MemoryError):
        nr.tune(part, SPACE, tmp_path / "part", trials=6)
    rest = Landscape()
    tuning = nr.tune(rest, SPACE, tmp_path / "part", trials=6)
    assert "3 of 6 trials are done" in caplog.text
    assert part.seen == whole.seen[:4]
    assert len(rest.seen) == 3
    assert [trial.number for trial in tuning.trials] == [0, 1, 2, 4, 5, 6]
    assert tuning.trials[:3] == [t._replace(seconds=s.seconds) for t, s in zip(
        expected.trials[:3], tuning.trials[:3], strict=True)]  # fmt: skip
    again = Landscape()
    assert nr.tune(again, SPACE, tmp_path / "part", trials=6).trials == tuning.trials
    assert again.seen == []


def test_a_trial_left_running_by_a_dead_process_is_replaced(tmp_path):
    land = Landscape()
    nr.tune(land, SPACE, tmp_path / "study", trials=1)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study" / "study.journal"))
    )
    optuna.load_study(study_name="newsrec", storage=storage).ask(distributions(SPACE))
    tuning = nr.tune(land, SPACE, tmp_path / "study", trials=2)
    assert [trial.number for trial in tuning.trials] == [0, 2]
    with pytest.raises(UserError, match=r"has a study with another search space \(n\)"):
        nr.tune(land, SPACE | {"n": [1, 2]}, tmp_path / "study", trials=2)
    with pytest.raises(UserError, match="has a study with another seed"):
        nr.tune(land, SPACE, tmp_path / "study", trials=2, seed=9)


def test_options_that_cannot_train_count_as_failed(tmp_path, caplog):
    caplog.set_level("INFO", "newsrec")

    def odd(number):
        if number in (1, 3):
            raise UserError("heads do not divide dim")

    before = signal.getsignal(signal.SIGINT)
    land = Landscape(fails=odd)
    tuning = nr.tune(land, SPACE, tmp_path / "study", trials=5)
    assert [trial.state == "failed" for trial in tuning.trials] == [False, True, False, True, False]
    assert math.isnan(tuning.trials[1].auc)
    assert "trial 1 (2 of 5) failed: heads do not divide dim" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before


def test_a_study_in_which_nothing_works_ends_soon_and_leaves_nothing(tmp_path):
    def always(number):
        raise UserError("there is no data")

    land = Landscape(fails=always)
    with pytest.raises(UserError, match=r"The first 3 trials failed.* there is no data"):
        nr.tune(land, SPACE, tmp_path / "study", trials=20)
    assert len(land.seen) == 3
    assert not (tmp_path / "study").exists()
    with pytest.raises(UserError, match=r"without val/auc"):
        nr.tune(lambda *_: None, SPACE, tmp_path / "study", trials=1)


def test_a_tracker_starts_a_run_for_each_trial(tmp_path, monkeypatch):
    ended = []
    wandb = SimpleNamespace(run=object(), finish=lambda: ended.append(1))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    nr.tune(Landscape(), SPACE, tmp_path / "study", trials=2)
    assert ended == [1, 1]


def test_the_pruner_is_not_asked_in_the_last_epoch_nor_of_a_trial_run():
    asked = []
    trial = SimpleNamespace(report=lambda *a: asked.append(a), should_prune=lambda: True)
    report = AucReport(trial)
    trainer = SimpleNamespace(
        sanity_checking=True, callback_metrics={"val/auc": 0.5}, max_epochs=2, current_epoch=1,
        should_stop=False,
    )  # fmt: skip
    report.on_validation_end(trainer, None)
    assert asked == []
    trainer.sanity_checking = False
    report.on_validation_end(trainer, None)
    assert (asked, trainer.should_stop, report.pruned) == ([(0.5, 1)], False, False)
    trainer.current_epoch = 0
    report.on_validation_end(trainer, None)
    assert (trainer.should_stop, report.pruned) == (True, True)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ([], "has no choices"),
        (5, "is 5; give"),
        ({"low": 1, "hihg": 2}, "has 'hihg'. Did you mean high?"),
        ({"low": 1}, "high is missing"),
        ({"low": 2, "high": 1}, "low must be smaller"),
        ({"low": 0, "high": 1, "log": True}, "low must be above 0"),
        ({"low": 1, "high": 2, "log": "yes"}, "log is 'yes'"),
        ({"low": 1, "high": 2, "step": 0}, "step is 0"),
        ({"low": "a", "high": 2}, "low is a; a range needs numbers"),
        ({"low": True, "high": 2}, "low is True"),
    ],
)
def test_a_wrong_entry_is_named(entry, said):
    with pytest.raises(UserError, match=r"here: model\.lr") as error:
        check_space({"model.lr": entry}, "here")
    assert said in str(error.value)


def test_a_file_may_write_numbers_as_everybody_does(tmp_path):
    (tmp_path / "s.yaml").write_text("a: {low: 1e-4, high: 1E-2, log: true}\nb: [1e-3, x]\n")
    space, place = read_space(str(tmp_path / "s.yaml"))
    assert space == {"a": {"low": 1e-4, "high": 1e-2, "log": True}, "b": [1e-3, "x"]}
    assert place == f"--space {tmp_path / 's.yaml'}"
    for text, said in (("- 1", "has no options"), ("a: [", "not YAML"), ("{}", "is empty")):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_space(str(tmp_path / "s.yaml"))
    with pytest.raises(UserError, match="Name a YAML file, or frozen or lora or tuned"):
        read_space("frozn")


CHOICE = st.one_of(
    st.booleans(), st.none(), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CHOICE, min_size=1, max_size=4, unique_by=str), st.data())
def test_choices_come_back_as_they_were_given(choices, data):
    space = {"o": choices}
    kept = distributions(space)["o"].choices
    place = data.draw(st.integers(0, len(kept) - 1))
    assert drawn(space, {"o": kept[place]}) == {"o": choices[place]}
    assert inside(space, {"o": choices[place]}) == {"o": as_key(choices[place])}


def test_ranges_are_whole_numbers_only_if_both_ends_are():
    space = {"a": {"low": 1, "high": 9, "step": 2}, "b": {"low": 1, "high": 2.0}}
    found = distributions(space | {"c": {"low": 1e-3, "high": 1.0, "log": True}})
    assert repr(found["a"]) == "IntDistribution(high=9, log=False, low=1, step=2)"
    assert isinstance(found["b"], optuna.distributions.FloatDistribution)
    assert found["c"].log
    assert inside({"a": {"low": 1, "high": 9}}, {"a": 10}) == {}


def test_a_report_ranks_trials_and_draws_them(tmp_path, capsys):
    space = {"x": {"low": 0.1, "high": 1.0, "log": True}, "kind": ["a", ["b"]]}
    rows = [("complete", 0.6), ("pruned", 0.9), ("failed", math.nan), ("complete", 0.7)]
    trials = [
        Trial(
            i, state, auc, 2, 1.0, {"x": 0.1 * (i + 1), "kind": ["b"]}, "odd" * (state == "failed")
        )
        for i, (state, auc) in enumerate(rows)
    ]
    tuning = Tuning(tmp_path, trials, {"kind": 0.25, "x": 0.75})
    assert tuning.best.number == 3
    print_tuning(tuning)
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines() if line.strip()]
    assert lines[0] == ["trial", "3", "trial", "0", "trial", "1", "trial", "2", "importance"]
    assert lines[2:4] == [
        ["val/auc", "0.7000", "0.6000", "0.9000", "-"],
        ["complete", "complete", "pruned", "failed"],
    ]
    assert ["x", "0.4", "0.1", "0.2", "0.3", "0.75"] in lines
    write_trials(tuning, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == ["3", "0", "1", "2"]
    assert table[3]["error"] == "odd"
    assert table[0]["kind"] == '["b"]'
    draw_tuning(tuning, space, tmp_path / "tuning.png")
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")


def test_options_of_the_command_and_of_fit_may_be_mixed():
    words = ["--config", "a.yaml", "--trials=3", "--model.dim", "8", "--output", "x", "--seed"]
    assert own_first(words) == [
        "--trials=3", "--output", "x", "--seed", "--", "--config", "a.yaml", "--model.dim", "8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("space", "more", "said"),
    [
        ("model.lrr: [1]", [], "fit has no option model.lrr. Did you mean model.lr?"),
        ("data.plm: [x]", [], "data.plm follows model.plm. Search that instead"),
        ("output: [x]", [], "output is no option of model, data or trainer"),
        ("model.dim: [16, big]", [], "model.dim is 'big'; it must be a whole number"),
        ("model.dim: [16]", ["--model.dmi=3"], "--model.dmi: there is no such option"),
        (
            "model.plm_lr: {low: 1e-5, high: 1e-4}",
            ["--model.tune_layers=1", "--model.lora.rank=2"],
            "Search model.lora.learning_rate instead",
        ),
        ("model.dim: [16]", ["--data.val=none"], "data.val is none"),
        ("model.dim: [16]", ["--trainer.devices=2"], "tune trains in one process"),
        ("model.dim: [16]", ["--trainer.fast_dev_run=true"], "trainer.fast_dev_run is set"),
        ("model.dim: [16]", ["--trials=0"], "--trials is 0"),
        ("model.dim: [16]", ["--trails", "3"], "Did you mean --trials?"),
        ("model.dim: [16]", ["--pruner=meadian"], "Did you mean median?"),
    ],
)
def test_mistakes_are_named_before_the_first_trial(tmp_path, capsys, space, more, said):
    (tmp_path / "space.yaml").write_text(space)
    options = [f"--space={tmp_path / 'space.yaml'}", f"--output={tmp_path / 'study'}"]
    assert said in refused(capsys, "tune", *options, "--data.root=none", *more)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("config", ["demo", "configs/demo.yaml"])
def test_a_preset_and_a_group_of_options_go_into_a_search(tmp_path, monkeypatch, config):
    from newsrec.commands import tune as command

    asked = {}

    def tune(train, space, output, **options):
        asked.update(options, space=space)
        raise UserError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "tune", tune)
    (tmp_path / "space.yaml").write_text("model.lora: [{rank: 2}, {rank: 4}]")
    options = ["--space=space.yaml", "--output=study", "--model.tune_layers=1"]
    with pytest.raises(SystemExit):
        main(["tune", *options, f"--config={config}"])
    assert asked["about"]["model.dim"] == 128
    assert asked["first"]["model.lora"]["rank"] == 0
    assert inside(asked["space"], asked["first"]) == {}


def test_newsrecs_own_spaces_fit_the_parser():
    from newsrec.commands.tune import Options

    options = Options(SMALL)
    for name in ("frozen", "tuned", "lora"):
        options.check_space(*read_space(name))


@pytest.mark.parametrize(
    ("given", "named", "drawn_too"),
    [
        ([], "frozen", True),
        (["--model.tune_layers=1"], "tuned", True),
        (["--model.tune_layers=1", "--model.lora.rank=2"], "lora", True),
        (["--model.loss=impression"], "frozen", False),
    ],
)
def test_the_default_space_has_only_options_that_the_config_uses(given, named, drawn_too):
    from newsrec.commands.tune import Options

    options = Options([*SMALL, *given])
    space, place = options.own_space()
    assert place == f"--space {named}"
    assert ("data.npratio" in space) is drawn_too
    options.check_space(space, place)


@pytest.mark.slow
def test_three_trials_find_a_config_that_trains_the_same(mind_dir, plm_dir, tmp_path, capsys):
    (tmp_path / "space.yaml").write_text(
        "model.lr: {low: 1e-4, high: 1e-2, log: true}\n"
        "model.dim: [8, 16]\n"
        "model.news.heads: [2, 3]\n"
    )
    study = tmp_path / "study"
    options = [*fit_options(mind_dir, plm_dir, study)[1:], f"--space={tmp_path / 'space.yaml'}"]
    main(["tune", "--trials=2", *options])
    main(["tune", "--trials=4", *options])
    said = capsys.readouterr()
    assert "chosen by its val/auc on dev" in said.out
    assert "2 of 4 trials are done" in said.err
    assert "draws have seed 0; each trial trains with seed_everything 42" in said.err
    assert "Traceback" not in said.err
    with (study / "trials.csv").open() as file:
        best, *others = csv.DictReader(file)
    trial = study / "trials" / f"{int(best['trial']):03d}"
    summary = json.loads((trial / "summary.json").read_text(encoding="utf-8"))
    assert summary["auc"] == pytest.approx(float(best["val/auc"]), abs=1e-6)
    main(["fit", f"--config={study / 'best.yaml'}", f"--output={tmp_path / 'run'}"])
    a, b = (
        torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for folder in (trial, tmp_path / "run")
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(others) == 3
    said = refused(capsys, "tune", "--trials=5", *options, "--data.npratio=2")
    assert "another value of an option of fit (data.npratio)" in said
