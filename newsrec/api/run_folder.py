"""A trained run in its folder: evaluate it, export it, look at what it logged."""

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from newsrec.data import FIRST_NEWS
from newsrec.errors import MissingModelError
from newsrec.evaluation.half_life import HalfLife
from newsrec.evaluation.repeats import Repeats
from newsrec.evaluation.rerank import Rerank
from newsrec.evaluation.scoring import score_checkpoints
from newsrec.evaluation.voices import read_voices
from newsrec.export.export import export
from newsrec.export.pretrained import PretrainedRecommender
from newsrec.hub import checked_id
from newsrec.report.closing import SUMMARY_FILE
from newsrec.report.evaluate import evaluate
from newsrec.serving.publish import push
from newsrec.spoken import in_python
from newsrec.training.checkpoint.read import hyper_parameters, read_checkpoint
from newsrec.training.module import RecommenderModule


class RunFolder:
    """A trained run in its folder; ``fit`` returns one, and any run can be opened later.

    Args:
        path: The run folder, written by ``fit`` or ``python -m newsrec fit``.

    Raises:
        MissingModelError: If the folder has no checkpoint.
    """

    def __init__(self, path: str | Path, *, _trial: bool = False) -> None:
        self.path = Path(path)
        if not (_trial or self._names()):
            raise MissingModelError(
                f"{path} has no checkpoint. Train a run there with newsrec.fit."
            )

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def checkpoint(self, name: str = "best") -> Path:
        """Return the file of a checkpoint, ``best`` or ``last``."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    @property
    def summary(self) -> dict[str, Any]:
        """Metrics of the best checkpoint on the split that chose it, steps and speed.

        Empty if no split chose it.
        """
        path = self.path / SUMMARY_FILE
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return found

    @property
    def history(self) -> pd.DataFrame:
        """What the run logged: a row for each logged step, NaN where a value was not logged.

        Empty if the run ended before it logged anything.
        """
        path = self.path / "metrics.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame()

    @in_python
    def load_model(self, checkpoint: str = "best") -> RecommenderModule:
        """Return the trained model, in evaluation mode on the CPU."""
        return RecommenderModule.load_from_checkpoint(self._file(checkpoint))

    @in_python
    def evaluate(
        self,
        split: str = "dev",
        output: str | Path | None = None,
        *,
        root: str | Path | None = None,
        checkpoint: str = "best",
        baselines: bool = True,
        beyond: bool = True,
        voices: str | Path | None = None,
        precision: str = "fp32",
        repeat_threshold: float | None = None,
        repeat_penalty: float | None = None,
        half_life: float | str | None = None,
        per_category: int | None = None,
        near_duplicates: float | None = None,
        diversity: float = 0.0,
        calibration: float = 0.0,
        trade_off: bool = False,
        **trainer: Any,
    ) -> dict[str, Any]:
        """Score a split and return MIND's metrics, as ``python -m newsrec evaluate`` does.

        Args:
            split: Split to score.
            output: Folder for all results, among them ``prediction.zip`` and ``report.html``;
                None writes nothing.
            root: Data folder; None is that of the training.
            checkpoint: ``best`` or ``last``.
            baselines: Whether to compare with the baselines.
            beyond: Whether to measure the first news of each ranking beyond accuracy.
            voices: File of the named entities that representation and alternative voices count;
                with None, representation counts persons, and there are no alternative voices.
            precision: fp32, bf16 or auto.
            repeat_threshold: A candidate whose vector has at least this cosine with the vector of a
                clicked news item is a repeat, and is ranked lower; None finds no repeats.
            repeat_penalty: What is subtracted from the score of a repeat; None ranks repeats last.
            half_life: Hours in which the odds of a candidate halve; ``auto`` chooses them by the
                AUC of the split; None lowers no score.
            per_category: Most news of a category among the first ten; None does not limit them.
            near_duplicates: Cosine from which on a news item is a near-duplicate of one above it,
                and is not among the first ten; None allows them.
            diversity: How much each of the first ten must differ from those above it, 0 to 1.
            calibration: How much their categories must be those of the history, 0 to 1.
            trade_off: Whether to measure what re-ranking costs and gains.
            trainer: Options of the Trainer.

        Returns:
            The content of ``metrics.json``; empty on all processes but the first.

        Raises:
            UserError: If the data or the options cannot be used.
        """
        path, root = self._place(checkpoint, root)
        rerank = Rerank.of(per_category, near_duplicates, diversity, calibration)
        score = partial(
            score_checkpoints,
            [path],
            root,
            split,
            trainer=trainer,
            precision=precision,
            with_means=baselines,
            repeats=Repeats.of(repeat_threshold, repeat_penalty),
            half_life=HalfLife.of(half_life),
        )
        found = evaluate(
            score,
            root,
            split,
            output,
            ckpt_path=path,
            baselines=baselines,
            beyond=beyond,
            voices=None if voices is None else read_voices(voices),
            rerank=rerank,
            measure_trade_off=trade_off,
        )
        return {} if found is None else found.metrics

    @in_python
    def scores(
        self,
        split: str = "dev",
        *,
        root: str | Path | None = None,
        checkpoint: str = "best",
        **trainer: Any,
    ) -> pd.DataFrame:
        """Return a split's scores, a row for each candidate in the order of the file.

        Args:
            split: Split to score.
            root: Data folder; None is that of the training.
            checkpoint: ``best`` or ``last``.
            trainer: Options of the Trainer.

        Returns:
            Columns ``impression_id``, ``user_id``, ``news_id`` (None where ``news.tsv`` lacks the
            id), ``score`` and, where the split has labels, ``label``. No rows on all processes but
            the first.
        """
        path, root = self._place(checkpoint, root)
        scored = score_checkpoints([path], root, split, trainer=trainer, with_means=False)
        if scored is None:
            return pd.DataFrame()
        part = scored.data.split(split)
        owner = part.candidates.owners()
        ids = np.array([None] * FIRST_NEWS + scored.data.news["news_id"].to_pylist(), dtype=object)
        users = np.array(scored.data.users.to_pylist(), dtype=object)
        columns = {
            "impression_id": np.asarray(part.impression_id)[owner],
            "user_id": users[np.asarray(part.user)[owner]],
            "news_id": ids[part.candidates.values],
            "score": scored.scores,
        }
        if part.labels is not None:
            columns["label"] = np.asarray(part.labels)
        return pd.DataFrame(columns)

    @in_python
    def export(
        self,
        output: str | Path,
        *,
        root: str | Path | None = None,
        checkpoint: str = "best",
        news_encoder: bool = True,
        vectors: str = "float32",
        quantize: bool = False,
    ) -> Path:
        """Write a folder that runs without PyTorch, for ``Recommender.load``.

        Args:
            output: Folder to write, absent or empty.
            root: Data folder whose news can be recommended; None is that of the training.
            checkpoint: ``best`` or ``last``.
            news_encoder: Whether the export can also encode news that is published later.
            vectors: Type of the news vectors: ``float32``, ``float16`` or ``int8``.
            quantize: Whether to round the weights of the news encoder to int8.

        Returns:
            The folder.

        Raises:
            UserError: If a package is missing, the output or the data cannot be used, or a smaller
                export loses too much.
        """
        path, root = self._place(checkpoint, root)
        export(str(path), Path(output), str(root), news_encoder, vectors, quantize)
        return Path(output)

    @in_python
    def pretrained(self, checkpoint: str = "best") -> PretrainedRecommender:
        """Return the trained model with its tokenizer; it can encode titles and be saved."""
        return PretrainedRecommender.from_checkpoint(self._file(checkpoint))

    @in_python
    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        root: str | Path | None = None,
        checkpoint: str = "best",
        news: bool = False,
    ) -> str:
        """Publish the run's export on the Hugging Face hub, with its metrics on dev.

        Args:
            repo_id: The repository, which is made if there is none.
            private: Whether a new repository is private; None leaves it to the account.
            revision: Branch, which is made if there is none; None is the main branch.
            commit_message: The commit's message.
            root: As in ``export``.
            checkpoint: ``best`` or ``last``.
            news: Whether to also publish the titles and the vectors of the data's news.

        Returns:
            The address of the commit.

        Raises:
            HubError: If the hub cannot be reached, or refuses the upload.
            UserError: As in ``export``.
        """
        checked_id(repo_id)  # before the long work
        with TemporaryDirectory() as folder:
            exported = self.export(Path(folder) / "export", root=root, checkpoint=checkpoint)
            return push(exported, repo_id, private, revision, commit_message, news)

    def _place(self, checkpoint: str, root: str | Path | None) -> tuple[Path, str | Path]:
        path = self._file(checkpoint)
        return path, root or hyper_parameters(read_checkpoint(path), "data")["root"]

    def _file(self, checkpoint: str) -> Path:
        path = self.checkpoint(checkpoint)
        if path.is_file():
            return path
        if not self._names():
            raise MissingModelError(
                f"{self.path} has no checkpoint; a trial with fast_dev_run keeps none."
            )
        why = " because no validation was reached" if checkpoint == "best" else ""
        give = " or ".join(f"checkpoint={name!r}" for name in self._names())
        raise MissingModelError(f"{self.path} has no checkpoint {checkpoint!r}{why}. Give {give}.")

    def _names(self) -> list[str]:
        return [name for name in ("best", "last") if self.checkpoint(name).is_file()]
