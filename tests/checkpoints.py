"""A small real checkpoint, and what a model that is loaded from one answers."""

import copy
import warnings

import torch
from conftest import NEWS, tiny_behaviors, tiny_news, write_mind
from lightning import Trainer
from tokenizers import Tokenizer

from newsrec.data.datamodule import MindDataModule
from newsrec.training.checkpoint.read import hyper_parameters, read_checkpoint
from newsrec.training.module import RecommenderModule

SMALL = {"heads": 2, "ffn": 16}


def train(folder, plm_dir, **options):
    """Train for one step; return the checkpoint that was written."""
    root = write_mind(folder / "mind", tiny_news(), tiny_behaviors())
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, no logger: Lightning's advice
        torch.manual_seed(0)
        user = SMALL | {"positions": "recency"}
        module = RecommenderModule(str(plm_dir), dim=16, news=SMALL, user=user, **options)
        data = MindDataModule(str(root), str(plm_dir), seed=1)
        trainer = Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(folder / "best.ckpt")
    return folder / "best.ckpt"


def content(path):
    """Return what a checkpoint holds, unchecked, in dicts of one's own."""
    return copy.deepcopy(torch.load(path, weights_only=True))


@torch.no_grad()
def answers(path):
    """Return scores of all news for a user, as a checkpoint's model gives them ``[news]``."""
    checkpoint = read_checkpoint(path)
    data = MindDataModule(**hyper_parameters(checkpoint, "data"))
    model = RecommenderModule.from_checkpoint(checkpoint, path).recommender
    tokenizer = Tokenizer.from_str(checkpoint["newsrec"]["tokenizer_json"])
    tokenizer.no_padding()
    tokenizer.enable_truncation(data.max_tokens)
    rows = [tokenizer.encode(title).ids for _, _, title, _ in NEWS.values() if title]
    rows.sort(key=len)
    lengths = torch.tensor([0, 0, *map(len, rows)])
    token_ids = torch.zeros(len(rows) + 2, len(rows[-1]), dtype=torch.int32)
    for i, row in enumerate(rows, start=2):
        token_ids[i, : len(row)] = torch.tensor(row)
    news = model.encode_news(token_ids, lengths)
    return news[2:] @ model.encode_user(news, torch.tensor([[3, 5, 9]]))[0, 0]
