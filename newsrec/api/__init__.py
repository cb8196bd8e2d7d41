"""Train, evaluate and export from Python; each does what the command of the same name does.

::

    import newsrec as nr

    data = nr.MindDataModule("data/demo", seed=42)
    model = nr.RecommenderModule()
    run = nr.fit(model, data, output="runs/mine", max_epochs=5)
    print(run.evaluate("dev")["auc"])
    run.export("exports/mine")
    print(nr.Recommender.load("exports/mine").recommend(["N1", "N2"], k=5).news_ids)
"""

from newsrec.api.fitting import fit
from newsrec.api.run_folder import RunFolder

__all__ = ["RunFolder", "fit"]
