"""What a person sees of a running fit."""

import logging
import os
import re
import signal

import pytest
from conftest import fit_options
from hypothesis import given, settings
from hypothesis import strategies as st
from test_throughput import fit, make  # noqa: F401, a fixture

from newsrec.__main__ import main
from newsrec.training.module import RecommenderModule
from newsrec.training.progress.bar import FittingBar, SpeedBar, clock, fitting
from newsrec.training.progress.throughput import Throughput

FIELDS = ["loss 1.0712", "val AUC 0.6950", "clicks/s 232", "tokens/s 41.2k", "repeated 64%"]


def drawn(width, fields=FIELDS, total=465, n=210):
    """A bar as it is drawn on a terminal of some width."""
    bar = FittingBar(desc="Epoch 1/2", disable=True)
    bar.disable, bar.fp, bar.pos = False, open(os.devnull, "w", encoding="utf-8"), 0  # noqa: SIM115
    for name, value in {"desc": "Epoch 1/2", "unit": "it", "ascii": False}.items():
        setattr(bar, name, value)
    bar.n, bar.total, bar.initial, bar.start_t, bar._time = n, total, 0, 0.0, lambda: 32.0
    bar.unit_scale, bar.unit_divisor, bar.colour, bar.postfix = False, 1000, None, None
    bar.bar_format, bar.dynamic_ncols, bar.nrows = None, lambda file: (width, 24), 24
    bar._ema_dn = bar._ema_dt = lambda: None
    bar.fields = list(fields)
    line = str(bar)
    bar.disable = True
    return line


def test_a_wide_terminal_shows_everything_and_a_narrow_one_what_matters_most():
    assert all(field in drawn(130) for field in FIELDS)
    narrow = drawn(80)
    assert "loss 1.0712, val AUC 0.6950" in narrow
    assert "tokens/s" not in narrow
    assert "210/465 [00:32<00:38]" in narrow


@settings(max_examples=200, deadline=None)
@given(st.integers(46, 200), st.lists(st.sampled_from(FIELDS), max_size=8))
def test_whole_fields_are_left_out_and_none_is_cut(width, fields):
    line = drawn(width, fields)
    assert len(line) <= width
    shown = line.rpartition("]")[2]
    assert shown == "".join(f", {field}" for field in fields[: shown.count(",")])


def test_fields_are_kept_as_long_as_there_is_room():
    assert fitting(["ab", "cd"], 8) == ["ab", "cd"]
    assert fitting(["ab", "cd", "e"], 7) == ["ab"]
    assert fitting(["ab"], -1) == []


def test_the_bar_speaks_in_short_words(make):  # noqa: F811
    module, data = make()
    bar = SpeedBar()
    trainer = fit(module, data, Throughput(), bar, max_epochs=1, enable_progress_bar=True)
    shown = bar.get_metrics(trainer, module)
    assert list(shown) == ["loss", "val AUC", "clicks/s", "tokens/s", "news/s", "repeated"]
    assert shown["repeated"].endswith("%")
    assert re.fullmatch(r"0\.\d{4}", shown["val AUC"])


def test_an_error_does_not_stand_behind_the_bar(capfd):
    bar = SpeedBar()
    bar.train_progress_bar = bar.init_train_tqdm()
    bar.on_exception(None, None, ValueError())
    assert capfd.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (42, "0:42"), (725, "12:05"), (11220, "3:07:00"), (90000, "1 d 1:00:00")],
)
def test_a_duration_reads_as_on_a_clock(seconds, shown):
    assert clock(seconds) == shown


@pytest.mark.parametrize("bar", ["true", "false"])
def test_each_epoch_leaves_a_line_with_and_without_the_bar(
    mind_dir, plm_dir, tmp_path, caplog, bar
):
    caplog.set_level(logging.INFO, "newsrec")
    options = [o for o in fit_options(mind_dir, plm_dir, tmp_path / "run") if "progress" not in o]
    main([*options, f"--trainer.enable_progress_bar={bar}", "--baselines=false"])
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Epoch")]
    assert len(lines) == 2
    pattern = r"Epoch 1/2: loss \d\.\d{4}, val AUC (0\.\d{4}) \(the best so far\), took 0:\d\d, "
    first = re.fullmatch(pattern + r"0:\d\d left", lines[0])
    second = re.match(
        r"Epoch 2/2: loss .*, val AUC (0\.\d{4}) \(((the )?best so far.*?)\)", lines[1]
    )
    best = max(first[1], second[1])
    assert second[2] == ("the best so far" if best == second[1] else f"best so far {best}")
    assert "left" not in lines[1] or "0:00 left" in lines[1]


def test_a_run_that_goes_on_within_an_epoch_knows_how_much_is_left(
    mind_dir, plm_dir, tmp_path, monkeypatch, capfd
):
    run, drawn_bars = RecommenderModule.training_step, []

    def stop_at_fourth(module, batch, batch_idx):
        if batch_idx == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(module, batch, batch_idx)

    options = [o for o in fit_options(mind_dir, plm_dir, tmp_path / "run") if "progress" not in o]
    options += ["--data.batch_size=6", "--baselines=false"]
    monkeypatch.setattr(RecommenderModule, "training_step", stop_at_fourth)
    with pytest.raises(SystemExit):
        main(options)
    monkeypatch.setattr(RecommenderModule, "training_step", run)
    capfd.readouterr()
    show = SpeedBar._show
    monkeypatch.setattr(
        SpeedBar,
        "_show",
        lambda bar, *args: (show(bar, *args), drawn_bars.append(str(bar.train_progress_bar))),
    )
    main([*options, "--ckpt_path=last"])
    assert re.match(r"Epoch 1/2 +\d+%\|.*\| 5/9 \[00:0\d<00:0\d\]", drawn_bars[0])
    assert not any("/?" in line for line in drawn_bars)
    assert drawn_bars[-1].startswith("Epoch 2/2 100%")
    assert not any("-" in line for line in drawn_bars)
