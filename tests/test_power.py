import json

import numpy as np
import pytest
from scipy import stats
from test_compare import World

from newsrec.__main__ import main
from newsrec.evaluation.power import MARGIN, detectable, equivalence_p, power_of
from newsrec.evaluation.seeds import clustered_error


def test_equivalence_is_two_t_tests_where_each_user_has_one_impression():
    difference = np.random.default_rng(0).normal(0.001, 0.02, 300)
    users = np.arange(300)
    found = power_of(difference, users, 0.004)["p_equivalent"]
    below = stats.ttest_1samp(difference, 0.004, alternative="less").pvalue
    above = stats.ttest_1samp(difference, -0.004, alternative="greater").pvalue
    assert found == pytest.approx(max(below, above))


def test_what_is_detectable_is_found_in_four_of_five_samples():
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(60), 4)
    spread = np.sqrt(0.03**2 / 60 + 0.05**2 / 240)  # of the mean: by user, and by impression
    true = detectable(spread, 60)
    samples = true + rng.normal(0, 0.03, (2000, 60))[:, users] + rng.normal(0, 0.05, (2000, 240))
    errors = np.array([clustered_error(sample, users) for sample in samples])
    found = np.abs(samples.mean(axis=1)) / errors > stats.t.ppf(0.975, 59)
    assert 0.76 < found.mean() < 0.84
    # equivalence within a margin that is truly the difference is claimed in one of twenty
    equal = [
        equivalence_p(m, e, 60, true) < 0.05
        for m, e in zip(samples.mean(axis=1), errors, strict=True)
    ]
    assert 0.03 < np.mean(equal) < 0.07


def test_the_same_numbers_are_equal_and_one_user_shows_nothing():
    users = np.repeat(np.arange(5), 2)
    assert power_of(np.zeros(10), users) == {"detectable": 0.0, "p_equivalent": 0.0}
    assert power_of(np.full(10, 1.0), users)["p_equivalent"] == 1.0
    assert power_of(np.zeros(10), np.zeros(10, int)) == {"detectable": None, "p_equivalent": None}


def test_compare_says_what_is_equal_within_a_margin(tmp_path, capsys):
    world = World(tmp_path)
    a, b = world.run("a", seed=0), world.run("b", seed=0)
    main(["compare", str(a), str(b), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["margin"] == MARGIN
    auc = found["metrics"]["auc"]
    assert 0 < auc["detectable"] < 0.02
    for margin, said in ((0.05, "in AUC they are equal within .05."),
                         (0.0001, "shown neither to differ nor to be equal")):  # fmt: skip
        main(["compare", str(a), str(b), f"--margin={margin}"])
        assert said in " ".join(capsys.readouterr().out.split())
    better = world.run("c", 0.1, seed=0)
    main(["compare", str(better), str(b)])
    assert "in AUC they are not shown to be equal" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(a), str(b), "--margin=0"])
    assert stopped.value.code == 2
    assert "--margin is 0; give a difference" in capsys.readouterr().err
