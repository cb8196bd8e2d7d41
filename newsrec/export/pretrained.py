"""A trained model with its tokenizer: read from a folder or the hub, and saved there."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from newsrec import __version__
from newsrec.data.fields import Texts, category_rows
from newsrec.errors import MissingPackageError
from newsrec.export.card import model_card
from newsrec.export.export import describe, origin_of, seal, write_tokenizer
from newsrec.export.quality import quality
from newsrec.export.weights import read_model, write_model
from newsrec.files import publish, require_empty
from newsrec.model.plm.blocks import length_mask
from newsrec.model.recommender import NewsRecommender
from newsrec.model.residual import renamed
from newsrec.serving.encoding import TextEncoder
from newsrec.serving.folder import ExportFolder
from newsrec.serving.manifest import CONFIG, TOKENIZER, TORCH_FILES, WEIGHTS, reading
from newsrec.serving.publish import push
from newsrec.spoken import in_python
from newsrec.training.checkpoint.read import hyper_parameters, read_checkpoint, weights_hash
from newsrec.training.module import RecommenderModule

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class PretrainedRecommender(TextEncoder):
    """A trained model in PyTorch, with its tokenizer, as a folder or the hub keeps it.

    ``PretrainedRecommender.from_checkpoint`` and ``from_pretrained`` make one.

    Args:
        module: The model, in evaluation mode.
        tokenizer_json: Text of the PLM's ``tokenizer.json``.
        fields: Fields of a news item that the model reads.
        about: ``checkpoint`` and ``metrics`` of a manifest: origin and quality.
        root: Data folder of the training, if known.
    """

    def __init__(
        self,
        module: RecommenderModule,
        tokenizer_json: str,
        fields: Sequence[str],
        about: Mapping[str, Any],
        root: str | Path = "data",
    ) -> None:
        self.module = module
        self._tokenizer_json, self._fields, self._about = tokenizer_json, list(fields), dict(about)
        self._root = root
        self._trained = weights_hash(module.recommender.state_dict())
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(module.max_tokens)

    @property
    def model(self) -> NewsRecommender:
        """The model without a Trainer: news encoder, user encoder and scores."""
        return self.module.recommender

    @property
    def fields(self) -> list[str]:
        """Fields of a news item that make up its title's text."""
        return list(self._fields)

    @property
    def reads_abstracts(self) -> bool:
        """Whether the model reads the abstract as a text of its own."""
        return self.module.abstract_tokens > 0

    @property
    def category_names(self) -> dict[str, list[str]]:
        """Categories and subcategories that have a learned vector; others add nothing."""
        return self.module.category_names or {}

    @property
    def max_tokens(self) -> int:
        """Length at which titles are cut, in tokens."""
        return self.module.max_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The PLM's tokenizer, which cuts texts to ``max_tokens``."""
        return self._tokenizer

    @classmethod
    @in_python
    def from_checkpoint(cls, path: str | Path) -> "PretrainedRecommender":
        """Read a checkpoint that ``fit`` wrote.

        Raises:
            UserError: If there is no such file, or ``fit`` did not write it.
        """
        checkpoint = read_checkpoint(path)
        data = hyper_parameters(checkpoint, "data")
        module = RecommenderModule.from_checkpoint(checkpoint, path)
        about = {"checkpoint": origin_of(checkpoint, Path(path)), "metrics": None}
        tokenizer_json = checkpoint["newsrec"]["tokenizer_json"]
        return cls(module, tokenizer_json, data["fields"], about, data.get("root", "data"))

    @classmethod
    @in_python
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None
    ) -> "PretrainedRecommender":
        """Read a folder that ``save_pretrained`` or ``export`` wrote, or a repository on the hub.

        No code of the folder is run. Only the files that are read are downloaded.

        Args:
            name: The folder, or the id of a repository on the Hugging Face hub, such as
                ``me/news``.
            revision: Branch, tag or commit of the repository.

        Raises:
            HubError: If the hub cannot be read.
            UserError: If ``name`` is not such a folder, has another format, or was changed.
        """
        folder = ExportFolder.find(name, revision, TORCH_FILES)
        config, weights = folder.file(CONFIG), folder.file(WEIGHTS)
        with reading(folder.path):
            recommender = read_model(config, weights)
            options = renamed(json.loads(config.read_text(encoding="utf-8"))["model"])
            names = options.pop("category_names", None)
            module = RecommenderModule(plm=folder.manifest["plm"], **options)
            module.recommender, module.category_names = recommender, names
            module.eval()
            about = {part: folder.manifest.get(part) for part in ("checkpoint", "metrics")}
            tokenizer_json = folder.file(TOKENIZER).read_text(encoding="utf-8")
            found = cls(module, tokenizer_json, folder.manifest["fields"], about)
            model_card(module, found._described())  # so that it can be saved again
            return found

    @in_python
    def save_pretrained(
        self, folder: str | Path, *, metrics: Mapping[str, Any] | str | Path | None = None
    ) -> Path:
        """Write ``model.safetensors``, ``config.json``, the tokenizer, a card and a manifest.

        Args:
            folder: Folder to write, absent or empty.
            metrics: Result of ``evaluate``, or its ``metrics.json``, for the card; None keeps those
                that the model came with.

        Returns:
            The folder.

        Raises:
            UserError: If the folder cannot be written, or the metrics are of another model.
        """
        require_empty(Path(folder))
        about = self._about_with(metrics)
        publish(Path(folder), self._writer(about))
        return Path(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        metrics: Mapping[str, Any] | str | Path | None = None,
    ) -> str:
        """Publish what ``save_pretrained`` writes on the Hugging Face hub.

        Args:
            repo_id: The repository, which is made if there is none.
            private: Whether a new repository is private; None leaves it to the account.
            revision: Branch, which is made if there is none; None is the main branch.
            commit_message: The commit's message.
            metrics: As in ``save_pretrained``.

        Returns:
            The address of the commit.

        Raises:
            HubError: If the hub cannot be reached, or refuses the upload.
            UserError: As in ``save_pretrained``.
        """
        about = self._about_with(metrics)
        with TemporaryDirectory() as folder:
            self._writer(about)(Path(folder))
            return push(folder, repo_id, private, revision, commit_message)

    def sentence_transformer(self, residual_only: bool = False) -> "SentenceTransformer":
        """Return the news encoder as a model of ``sentence_transformers``.

        The input of the returned model is one text: all ``fields``, joined by spaces. Its
        ``save_pretrained`` writes a folder. If the news vector is the residual path alone,
        ``SentenceTransformer(folder)`` loads the folder without newsrec. Otherwise the folder names
        a class of newsrec, and loading needs ``trust_remote_code=True``, although the folder
        contains no code.

        Args:
            residual_only: Whether to leave out what the encoder adds to the residual path. The
                vectors are then the PLM's sentence vectors, centred and cut to ``dim``, not the
                model's news vectors.

        Raises:
            MissingPackageError: If the package is missing.
            UserError: If the model has no residual path.
        """
        try:
            from newsrec.export.sentences import as_sentence_transformer
        except ImportError as error:
            raise MissingPackageError.of(
                "sentence_transformer()", "sentence-transformers", "sentences"
            ) from error
        return as_sentence_transformer(self, residual_only)

    @torch.no_grad()
    def _encode_texts(self, texts: Texts) -> NDArray[np.float32]:
        training = self.module.training
        self.module.eval()
        tokens = self._tokens(texts.titles.to_pylist(), self.module.max_tokens)
        views, categories = None, None
        if texts.abstracts is not None:
            abstracts = texts.abstracts.to_pylist()
            views = torch.zeros(len(tokens), 2, dtype=torch.int64)  # row 0 of the vectors is none
            views[:, 0] = torch.arange(1, 1 + len(tokens))
            there = torch.tensor([bool(text) for text in abstracts], dtype=torch.bool)
            views[there, 1] = torch.arange(1, 1 + int(there.sum())) + len(tokens)
            tokens += self._tokens(
                [text for text in abstracts if text], self.module.abstract_tokens
            )
        vectors = self._encode_tokens(tokens)
        if views is not None:
            vectors = torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
            views = views.to(vectors.device)
        if self.category_names:
            rows = category_rows(self.category_names, texts._asdict())
            categories = torch.from_numpy(rows).to(vectors.device)
        vectors = self.model.news_encoder.join(vectors, views, categories)
        self.module.train(training)
        found: NDArray[np.float32] = vectors.float().cpu().numpy()
        return found

    def _tokens(self, texts: list[str], longest: int) -> list[list[int]]:
        """Return the tokens of each text, at least one, since the PLM needs one."""
        self._tokenizer.enable_truncation(longest)
        found = [e.ids or [0] for e in self._tokenizer.encode_batch_fast(texts)]
        self._tokenizer.enable_truncation(self.module.max_tokens)
        return found

    def _encode_tokens(self, tokens: list[list[int]]) -> Tensor:
        """Return the vectors of texts in any order ``[texts, dim]``."""
        encoder = self.model.news_encoder
        lengths = torch.tensor([len(ids) for ids in tokens], dtype=torch.int64)
        lengths, order = lengths.sort(stable=True)
        mask = length_mask(lengths, int(lengths.max()) if tokens else 1)
        token_ids = torch.zeros(mask.shape, dtype=torch.int32)
        token_ids[mask] = torch.tensor([i for row in order for i in tokens[row]], dtype=torch.int32)
        vectors: Tensor = encoder(token_ids.to(encoder.project.weight.device), lengths)
        return vectors[order.argsort().to(vectors.device)]

    def _about_with(self, metrics: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
        """Return origin and quality of the model as it is now."""
        origin = self._about["checkpoint"]
        changed = weights_hash(self.model.state_dict()) != self._trained
        if metrics is not None:
            found = quality(metrics, origin, changed, self._root)
            return {"checkpoint": origin, "metrics": found}
        if changed:
            return {"checkpoint": origin | {"metrics": {}, "changed": True}, "metrics": None}
        return dict(self._about)

    def _described(self) -> dict[str, Any]:
        """Return the values of a manifest that the card shows."""
        return self._about | {
            "versions": {"newsrec": __version__},
            "matching": self.model.head.settings(),
            "fields": self.fields,
            "encoders": {},
            "model_hash": self._trained,
        }

    def _writer(self, about: dict[str, Any]) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            write_model(self.module, folder)
            write_tokenizer(self.module, self._tokenizer_json, folder)
            manifest = describe(self.module, self.fields, folder)
            seal(self.module, manifest | {"encoders": {}} | about, folder)

        return write
