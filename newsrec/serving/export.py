"""The command ``export``: the user encoder in a folder that needs no PyTorch to run."""

import json
import logging
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from newsrec.data.mind import open_mind
from newsrec.errors import UserError
from newsrec.files import file_hash, publish, require_empty
from newsrec.model.encoders import UserEncoder
from newsrec.model.recommender import NewsRecommender
from newsrec.training.checkpoint import hyper_parameters, read_checkpoint
from newsrec.training.module import RecommenderModule

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the exported folder."""

TOLERANCE = 1e-4
"""Largest difference from PyTorch that passes, as a share of the largest score."""

INPUT_CONTRACT = (
    "history holds the news vectors of the stories that a reader clicked, oldest first, at most "
    "max_history of them (the last ones), zeros behind; mask is true where history is real. An "
    "empty history is a row whose mask is all false, with at least one column. The score of a "
    "story is the dot product of user_vector and its news vector; higher is better."
)


def add_arguments(parser: "ArgumentParser") -> None:
    """Add the command's options."""
    parser.add_argument(
        "--ckpt_path", required=True, help="checkpoint that fit wrote: runs/NAME/.../best.ckpt"
    )
    parser.add_argument("--output", required=True, help="folder to write, absent or empty")
    parser.add_argument(
        "--data.root",
        help="data folder: its stories' vectors are exported too, as news_vectors.npy",
    )


def run(args: "Namespace") -> None:
    """Export, verify, and only then let the folder appear."""
    output = Path(args.output)
    require_empty(output)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            version(package)
        except ImportError as error:
            raise UserError(
                f'export needs the package {package}: run `pip install "newsrec[export]"`, in a '
                'clone `pip install -c constraints.txt -e ".[export]"`.'
            ) from error
    checkpoint = read_checkpoint(args.ckpt_path)
    module = RecommenderModule.from_checkpoint(checkpoint)
    root = args.data.root
    if root is not None:  # a mistake in it shows before the work
        on_bad_line = hyper_parameters(checkpoint, "data").get("on_bad_line", "error")
        open_mind(root, on_bad_line)

    def build(folder: Path) -> None:
        encoder = module.recommender.user_encoder
        write_onnx(encoder, folder / "user_encoder.onnx")
        write_safetensors(encoder, folder / "user_encoder.safetensors")
        error = verify(module, folder)
        log.info("verified: onnxruntime and safetensors agree with PyTorch to %.1e", error)
        if root is not None:
            write_news_vectors(module, checkpoint, root, folder)
        info = manifest(module, checkpoint, Path(args.ckpt_path), folder, error)
        (folder / "manifest.json").write_text(json.dumps(info, indent=1) + "\n")

    publish(output, build)
    print(f"Exported to {output}:")
    for path in sorted(output.iterdir()):
        print(f"  {path.name:<26} {path.stat().st_size / 1024:10,.0f} KiB")
    if root is None:
        print(
            "Stories' vectors are not among them: add --data.root ROOT to export those of a folder."
        )


def write_onnx(encoder: UserEncoder, path: Path) -> None:
    """Write a user encoder as ONNX; batch and history may have any size from 1 on."""
    dim = encoder.empty.numel()
    # Two rows of two: a size of 1 would be taken for a constant.
    history, mask = torch.zeros(2, 2, dim), torch.ones(2, 2, dtype=torch.bool)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("history")
    sizes = {0: batch, 1: length}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder.eval(),
            (history, mask),
            str(path),
            input_names=["history", "mask"],
            output_names=["user_vector"],
            dynamic_shapes=(sizes, sizes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def write_safetensors(encoder: UserEncoder, path: Path) -> None:
    """Write a user encoder's weights under their PyTorch names."""
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, path)
    path.chmod(0o644)  # save_file makes it private; the other files are not


@torch.no_grad()
def verify(module: RecommenderModule, folder: Path) -> float:
    """Compare the exported files with PyTorch on scores.

    Batches of 2 and 9 readers; histories that are empty, short and full.

    Returns:
        Largest difference of a score, as a share of the largest score.

    Raises:
        RuntimeError: If it is above ``TOLERANCE``.
    """
    import onnxruntime
    from safetensors.torch import load_file

    encoder = module.recommender.user_encoder.eval()
    again = UserEncoder(module.dim, module.user, module.max_history, module.skip).eval()
    again.load_state_dict(load_file(folder / "user_encoder.safetensors"))
    session = onnxruntime.InferenceSession(
        str(folder / "user_encoder.onnx"), providers=["CPUExecutionProvider"]
    )
    stories = random_stories(module.recommender, module.max_tokens)
    generator = torch.Generator().manual_seed(0)
    full = module.max_history
    largest = worst = 0.0
    for lengths in ([0, full], [0, 1, min(7, full), full, 0, full, 1, min(7, full), full]):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        rows = torch.randint(len(stories), mask.shape, generator=generator)
        history = stories[rows] * mask[..., None]
        expected = encoder(history, mask) @ stories.T
        feed = {"history": history.numpy(), "mask": mask.numpy()}
        exported = torch.from_numpy(np.asarray(session.run(["user_vector"], feed)[0]))
        for user in (exported, again(history, mask)):
            worst = max(worst, float((user @ stories.T - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    error = worst / largest
    if not error <= TOLERANCE:  # also when it is NaN
        raise RuntimeError(
            f"The exported user encoder differs from PyTorch by {error:.1e} of the largest score; "
            f"{TOLERANCE:.0e} is allowed. Nothing was written."
        )
    return error


def random_stories(recommender: NewsRecommender, max_tokens: int, num_stories: int = 64) -> Tensor:
    """Return vectors of stories made of random tokens: real in scale and spread ``[news, dim]``."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = recommender.news_encoder.plm.config.vocab_size
    token_ids = torch.randint(vocabulary, (num_stories, min(8, max_tokens)), generator=generator)
    lengths = torch.full((num_stories,), token_ids.shape[1])
    return recommender.news_encoder.eval()(token_ids, lengths)


def write_news_vectors(
    module: RecommenderModule, checkpoint: dict[str, Any], root: str, folder: Path
) -> None:
    """Write ``news_vectors.npy`` and ``news.parquet``: every story of a data folder, row by row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from newsrec.data import FIRST_NEWS
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.catalogue import encode_catalogue

    data = MindDataModule(**(hyper_parameters(checkpoint, "data") | {"root": root}))
    data.tokenizer_json = checkpoint["newsrec"]["tokenizer_json"]
    data.setup("predict")
    vectors = encode_catalogue(module.recommender, data.catalogue).numpy()
    np.save(folder / "news_vectors.npy", vectors)
    news = data.data.news.select(["news_id", "title", "category", "subcategory"])
    rows = pa.array(np.arange(FIRST_NEWS, len(vectors)))
    pq.write_table(news.add_column(0, "row", rows), folder / "news.parquet")


def manifest(
    module: RecommenderModule,
    checkpoint: dict[str, Any],
    ckpt_path: Path,
    folder: Path,
    error: float,
) -> dict[str, Any]:
    """Return what ``manifest.json`` says: inputs, origin, hashes and versions."""
    ours = checkpoint["newsrec"]
    sizes = ["batch", "history"]
    return {
        "format": FORMAT,
        "inputs": {
            "history": {"shape": [*sizes, module.dim], "dtype": "float32"},
            "mask": {"shape": sizes, "dtype": "bool"},
        },
        "outputs": {"user_vector": {"shape": ["batch", module.dim], "dtype": "float32"}},
        "input_contract": INPUT_CONTRACT,
        "max_history": module.max_history,
        "user_encoder": {"dim": module.dim, "skip": module.skip, **vars(module.user)},
        "plm": module.plm,
        "checkpoint_sha256": file_hash(ckpt_path),
        "metrics": ours["metrics"],
        "selected_on": ours["selected_on"],
        "data_fingerprint": ours["data_fingerprint"],
        "largest_error": error,
        "files": {path.name: file_hash(path) for path in sorted(folder.iterdir())},
        "versions": {p: version(p) for p in ("newsrec", "torch", "onnx", "onnxruntime")},
    }
