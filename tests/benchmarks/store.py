"""What a write to a store costs beside many news, and what a kill loses.

    python tests/benchmarks/store.py
    python tests/benchmarks/store.py --news 2000 --kills 5     # a quick look

Prints one JSON object. One news item is added beside ``--news`` others, again and again: the time
of a whole ``upsert_news``, of the encoding in it, and of the same with ``Recommender.add_news``,
which copies all vectors. The encoders are a random model with the sizes of the demo's (6 layers of
384 in the PLM, vectors of 256); other news are random vectors. Then a process writes news, deletes
and clicks, and is killed (``kill -9``) at random times, ``--kills`` times: after each kill
everything that it had acknowledged must be in the store. The process encodes by a stand-in, so that
most of its time goes into writes.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from live_world import START, item, write_export
from recommend import write_encoder
from recommend import write_export as write_random

WORKER = Path(__file__).parents[1] / "live_world.py"
TITLES = "Storm closes ports as rates rise again and the last table at the harbour inn is sold"


def write_news_encoder(folder: Path) -> None:
    """Write a news encoder with random weights, and a tokenizer, into an exported folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    from newsrec.export.graphs import NEWS_NAMES, trace_news_encoder, write_onnx
    from newsrec.files import file_hash
    from newsrec.model.news_encoder import NewsEncoder

    torch.manual_seed(0)
    words = {"[UNK]": 0} | {word: n for n, word in enumerate(TITLES.lower().split(), 1)}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                        intermediate_size=1536, vocab_size=30_522)  # fmt: skip
    plm = BertModel(config, add_pooling_layer=False).eval()
    del plm, NewsEncoder, trace_news_encoder, write_onnx, NEWS_NAMES, file_hash
