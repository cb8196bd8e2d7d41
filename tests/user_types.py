"""What a user of the Python API writes, checked by mypy; nobody runs this file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_type

import pandas as pd
from lightning import LightningDataModule, LightningModule

import newsrec as nr
from newsrec.serving import Recommender
from newsrec.serving.results import Recommendations

data = nr.MindDataModule("data/demo", fields=["title"], batch_size=8, seed=42)
model = nr.RecommenderModule(precision="fp32", dim=64)
modules: tuple[LightningDataModule, LightningModule] = (data, model)
run = nr.fit(model, data, output=Path("runs/x"), patience=2, max_epochs=1)
assert_type(run, nr.RunFolder)
assert_type(run.evaluate("dev", baselines=False), dict[str, Any])
assert_type(run.scores("dev"), pd.DataFrame)
assert_type(run.history, pd.DataFrame)
assert_type(run.export("exports/x"), Path)
assert_type(run.load_model(), nr.RecommenderModule)
recommender = nr.Recommender.load("exports/x")
assert_type(recommender, Recommender)
found = recommender.recommend(["N1", "N2"], k=5)
assert_type(found, Recommendations)
ids: Sequence[str] = found.news_ids
assert_type(nr.open_mind("data/demo").num_news, int)
table: dict[str, Any] = nr.metrics_of_table({"impression_id": [1], "score": [0.5], "label": [1]})
nr.show_our_messages()

try:
    nr.simulate("data/world", "demo", 0)
except (nr.MissingDataError, nr.MissingModelError) as missing:
    assert_type(missing.filename, Any)
except (nr.DataError, nr.ModelError, nr.MissingPackageError, nr.UserError, nr.Stopped) as error:
    message: str = str(error)
