"""The news encoder as a model of the package ``sentence_transformers``."""

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from newsrec.errors import UserError
from newsrec.model.fastformer import Fastformer, FastformerConfig, pooling_of
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.lora import merged_state
from newsrec.model.residual import ResidualPath

if TYPE_CHECKING:
    from newsrec.export.pretrained import PretrainedRecommender


class NewsPooling(Module):
    """Pools the PLM's states of a news item into its vector, as ``NewsEncoder`` does.

    Args:
        hidden: Size of a state.
        dim: Size of a news vector.
        fastformer: Shape of the stack over tokens.
        max_tokens: Longest text, in tokens.
        residual: Whether there is a residual path.
        last_token: Whether this path reads the last token's state, and not the mean of all.
    """

    config_keys: list[str] = [  # noqa: RUF012
        *("hidden", "dim", "fastformer", "max_tokens", "residual", "last_token")
    ]

    def __init__(
        self,
        hidden: int,
        dim: int,
        fastformer: dict[str, Any],
        max_tokens: int,
        residual: bool,
        last_token: bool = False,
    ) -> None:
        super().__init__()
        self.last_token = last_token
        self.hidden, self.dim, self.fastformer = hidden, dim, fastformer
        self.max_tokens, self.residual = max_tokens, residual
        shape = FastformerConfig.of(fastformer)
        parts = {
            "project": nn.Linear(hidden, dim),
            "fastformer": Fastformer(dim, shape, max_tokens),
            "pooling": pooling_of(dim, shape),
        }
        self.parts = nn.ModuleDict(parts)
        if residual:
            self.parts["residual"] = ResidualPath(hidden, dim, last_token)
            self.parts.register_parameter("gate", nn.Parameter(torch.zeros(())))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``sentence_embedding`` ``[news, dim]`` to the features."""
        states: Tensor = features["token_embeddings"]
        mask = features["attention_mask"].bool()
        x = self.parts["fastformer"](self.parts["project"](states), mask)
        x = self.parts["pooling"](x, mask)
        if self.residual:
            x = self.parts["residual"](states, mask) + self.parts.gate * x
        features["sentence_embedding"] = x
        return features

    def get_embedding_dimension(self) -> int:
        """Return the size of a news vector."""
        return self.dim

    def save(
        self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        self.save_config(output_path)
        self.save_torch_weights(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "NewsPooling":
        """Read what ``save`` wrote, from a folder or the hub."""
        place: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        pooling = cls(**cls.load_config(model_name_or_path, **place))
        cls.load_torch_weights(model_name_or_path, model=pooling, **place)
        return pooling


def as_sentence_transformer(
    pretrained: "PretrainedRecommender", residual_only: bool = False
) -> SentenceTransformer:
    """Return the news encoder of a trained model; see ``PretrainedRecommender``."""
    encoder = pretrained.model.news_encoder
    path = encoder.residual
    if residual_only and path is None:
        raise UserError(
            "residual_only is True, but the model has no residual path. Leave it out, or train "
            "with model.residual true."
        )
    if pretrained.reads_abstracts and not residual_only:
        raise UserError(
            "The model reads title and abstract as two texts, and sentence_transformers gives it "
            "one. Use encode(titles, abstracts=...) instead."
        )
    if pretrained.category_names and not residual_only:
        raise UserError(
            "The model adds vectors of categories, and sentence_transformers gives it only a text. "
            "Use encode(titles, categories=...) instead."
        )
    closed = encoder.gate is not None and not encoder.gate.item()
    with torch.random.fork_rng(devices=[]):  # random initial values, later kept only in a pooler
        torch.manual_seed(0)
        modules: list[nn.Module] = [_transformer(pretrained)]
        if path is not None and (residual_only or closed):
            modules += _residual(path)
        else:
            modules.append(_pooling(encoder, pretrained))
    return SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="dot").eval()


def _residual(path: ResidualPath) -> list[nn.Module]:
    """Return the residual path in modules of the package."""
    dim, hidden = path.projection.shape
    weight, bias = path.projection.clone(), -(path.projection @ path.centre)
    dense = Dense(hidden, dim, activation_function=None, init_weight=weight, init_bias=bias)
    return [Pooling(hidden, "lasttoken" if path.last_token else "mean"), Normalize(), dense]


def _pooling(encoder: NewsEncoder, pretrained: "PretrainedRecommender") -> NewsPooling:
    """Return the part of a news encoder after its PLM."""
    module = pretrained.module
    sizes = encoder.project.in_features, encoder.project.out_features
    shape = vars(module.news)
    last_token = encoder.cut.last_token
    pooling = NewsPooling(*sizes, dict(shape), module.max_tokens, module.residual, last_token)
    own = encoder.state_dict()
    pooling.parts.load_state_dict({name: own[name] for name in pooling.parts.state_dict()})
    return pooling


def _transformer(pretrained: "PretrainedRecommender") -> Transformer:
    """Return the PLM with its tokenizer, read from a folder as the package wants it."""
    plm = pretrained.model.news_encoder.plm
    tokenizer = pretrained.tokenizer
    pad = getattr(plm.config, "pad_token_id", None) or 0
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=tokenizer.id_to_token(pad),
        model_max_length=pretrained.max_tokens,
    )
    said = hf_logging.get_verbosity()
    with TemporaryDirectory() as folder:
        plm.save_pretrained(folder, state_dict=merged_state(plm))
        fast.save_pretrained(folder)
        hf_logging.set_verbosity_error()  # the pooler is missing in the files, and unused
        try:
            return Transformer(folder, max_seq_length=pretrained.max_tokens)
        finally:
            hf_logging.set_verbosity(said)
