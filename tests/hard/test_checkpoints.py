"""Checkpoints that were damaged, or changed by somebody who means harm."""

import random
from collections import Counter

import checkpoints
import pytest
import torch

from hard import TIMES
from newsrec.errors import UserError

MUTATIONS = 150 * TIMES
NAN, INFINITE = float("nan"), float("inf")
ODD = [
    *(None, True, False, -1, 0, 1, 7, 0.5, 1e300, NAN, INFINITE, 10**9, 2**63, 10**5000),
    *("", "x", "../../x", "\x1b[31m", "sdpa", "flash_attention_2", "sys.exit"),
    *([], {}, [[]], {"x": 1}, {1: 2}, ["title"], torch.zeros(2), torch.tensor(NAN)),
]
"""What takes the place of a value."""
READ = ("newsrec", "hyper_parameters", "datamodule_hyper_parameters", "state_dict", "epoch")
"""Parts that are read where a model is loaded; the others are Lightning's, for a run to go on."""
OTHER_MODEL = {
    *("hidden_act", "layer_norm_eps", "num_attention_heads", "position_embedding_type"),
    *("is_decoder", "is_encoder_decoder", "chunk_size_feed_forward", "pad_token_id", "dtype"),
    *("tokenizer_json", "max_tokens", "max_history", "norm", "encoder", "dropout"),
}
"""Options and texts that no weight contradicts: another value is another model, which may load."""


def mutate(checkpoint, rng):
    """Change one value at any depth, or take it out; return its place and what was done."""
    place, node = [rng.choice(READ)], checkpoint
    while True:
        child = node[place[-1]]
        inner = isinstance(child, dict | list) and child
        if not inner or (len(place) > 1 and rng.random() < 0.1) or rng.random() < 0.04:
            break
        node = child
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        place.append(rng.choice(keys))
    value = node[place[-1]]
    if isinstance(value, torch.Tensor) and rng.random() < 0.8:
        how = rng.choice(WEIGHTS)
        node[place[-1]] = how(value)
        return place, f"{how.__name__} {value.dtype}"
    if rng.random() < 0.25:
        del node[place[-1]]
        return place, "taken out"
    if isinstance(value, str) and len(value) > 1000 and rng.random() < 0.7:
        start = rng.randrange(len(value))
        end = start + rng.choice([1, 10, 1000])
        node[place[-1]] = value[:start] + rng.choice(["", "9", "null", '"x"']) + value[end:]
        return place, f"{start} to {end}"
    odd = rng.choice(ODD)
    if rng.random() < 0.1 and isinstance(node, dict):
        node[rng.choice(["auto_map", "attn_implementation", "quantization_config", "x", 7])] = odd
        return place, f"beside it {type(odd).__name__}"
    node[place[-1]] = odd
    return place, f"now a {type(odd).__name__} {odd if isinstance(odd, str | float) else ''}"


def cut(weight):
    """Return the weight without its last row."""
    return weight[:-1] if weight.ndim else weight.reshape(1)


def turned(weight):
    """Return it with its axes in the other order."""
    return weight.T.contiguous() if weight.ndim > 1 else weight[None]


def not_a_number(weight):
    """Return it with NaN as its first value."""
    weight = weight.clone().float()
    weight.view(-1)[0] = NAN
    return weight


def spread(weight):
    """Return one number, seen as all of it."""
    return torch.zeros(1, dtype=weight.dtype).expand(*weight.shape, 2**40)


def sparse(weight):
    """Return it without its zeros."""
    return weight.to_sparse() if weight.ndim else weight


def integers(weight):
    """Return it rounded."""
    return weight.to(torch.int64)


def complex_numbers(weight):
    """Return it with an imaginary part."""
    return weight.to(torch.complex64)


def doubled(weight):
    """Return it in float64, the same numbers."""
    return weight.double()


WEIGHTS = [cut, turned, not_a_number, spread, sparse, integers, complex_numbers, doubled]


def outcome(path, expected):
    """Return same, other scores, refused, or what else was raised."""
    try:
        found = checkpoints.answers(path)
    except UserError as error:
        return "refused" if str(path) in str(error) else f"refused without its file: {error}"
    except BaseException as error:
        return f"failed: {error!r}"
    if found.isnan().any():
        return "refused"  # by evaluate, which names the first impression
    return "same" if torch.equal(found, expected) else "other scores"


@pytest.mark.slow
def test_an_altered_checkpoint_gives_the_same_scores_or_is_refused(tmp_path, plm_dir):
    source = checkpoints.train(tmp_path, plm_dir)
    expected = checkpoints.answers(source)
    path, found = tmp_path / "altered.ckpt", {}
    for seed in range(MUTATIONS):
        checkpoint = checkpoints.content(source)
        place, how = mutate(checkpoint, random.Random(f"checkpoint {seed}"))
        torch.save(checkpoint, path)
        found[seed] = (place, how, outcome(path, expected))
    wrong = {
        seed: line
        for seed, line in found.items()
        if line[2] not in ("same", "refused")
        and not (line[2] == "other scores" and OTHER_MODEL & set(line[0]))
    }
    assert not wrong
    kinds = Counter(line[2] for line in found.values())
    assert kinds["refused"] > MUTATIONS / 2  # else the mutations would be no test
    assert kinds["same"] > MUTATIONS / 20
    assert torch.equal(checkpoints.answers(source), expected)
