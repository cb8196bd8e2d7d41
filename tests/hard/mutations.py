"""Load changed copies of an exported folder, in a process that may hang or crash.

``python -m hard.mutations FOLDER KIND FIRST LAST`` prints a line for each seed before it is tried,
and a line with what came of it. KIND is ``damaged`` (a file is not what the manifest says) or
``forged`` (the manifest was made to agree, as a stranger would).
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from newsrec.errors import UserError
from newsrec.files import file_hash
from newsrec.serving import Recommender
from newsrec.serving.manifest import settings_hash

SECONDS = 30
"""For one load; the process is killed after that."""
MEMORY = 12 << 30
ODD = [
    None,
    True,
    -1,
    0,
    0.5,
    1e300,
    2**70,
    "",
    "x",
    "../../x",
    "\x1b[31m",
    [],
    {},
    [[]],
    ["title"],
]
"""What takes the place of a value in JSON."""


def answers(folder: Path) -> list:
    """Everything that a service asks of an export, torch's part included."""
    from newsrec.export.weights import load_model

    recommender = Recommender.load(folder, threads=1)
    found = [recommender.user_vector(["N1", "N3", "N9"]).tolist()]
    for history in (["N1", "N3"] * 12, []):
        best = recommender.recommend(history, k=5)
        ranking = recommender.rank(history, ["N6", "N404", "N9"])
        found += [best.news_ids, best.scores.tolist(), ranking.news_ids, ranking.unknown_candidates]
        found.append(recommender.describe(best.news_ids))
    found.append(recommender.recommend([], k=2, categories=["sports"]).news_ids)
    long = "Storm closes ports along the coast, ferries stay in and the lights are out"
    found.append(recommender.encode_news(["Rain", long], abstracts=["", long]).tolist())
    model = load_model(folder)
    found.append([float(weight.double().sum()) for weight in model.state_dict().values()])
    return found


def mutate(folder: Path, rng: random.Random) -> str:
    """Change one file, and say how."""
    name = rng.choice(sorted(path.name for path in folder.iterdir()))
    path = folder / name
    kinds = [_flip, _flip, _flip, _cut, _lengthen, _swap, _replace]
    kinds += [_retype] * 8 if name.endswith(".json") else []
    kinds += [_other_array] * 4 if name.endswith(".npy") else []
    kinds += [_other_table] * 4 if name.endswith(".parquet") else []
    kind = rng.choice(kinds)
    return f"{name}: {kind.__name__[1:]} {kind(path, rng) or ''}".strip()


def _flip(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    # Half of the flips near an end, where formats keep what they are.
    reach = rng.choice([len(data), min(len(data), 400)])
    places = [rng.randrange(reach) * rng.choice([1, -1]) for _ in range(rng.choice([1, 1, 2, 8]))]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return str(places)


def _cut(path: Path, rng: random.Random) -> str:
    data = path.read_bytes()
    kept = rng.choice([0, 1, len(data) - 1, rng.randrange(len(data))])
    path.write_bytes(data[:kept])
    return f"to {kept}"


def _lengthen(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 3000)))


def _swap(path: Path, rng: random.Random) -> str:
    other = rng.choice(sorted(p for p in path.parent.iterdir() if p != path))
    path.write_bytes(other.read_bytes())
    return f"for {other.name}"


def _replace(path: Path, rng: random.Random) -> str:
    path.unlink()
    kind = rng.choice(["absent", "folder", "pipe", "link", "lost link", "device"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "absent":
        path.symlink_to({"link": "/etc/passwd", "device": "/dev/zero"}.get(kind, "nowhere"))
    return kind


def _retype(path: Path, rng: random.Random) -> str:
    """Put something odd in the place of one value, or take it out."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    place, node = [], tree
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        place.append(key)
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.2:
            break
        node = node[key]
    how = rng.randrange(4) if isinstance(node, dict) else rng.choice([0, 2, 3])
    if how == 0:
        del node[key]
    elif how == 1:
        node[rng.choice(["../../evil", "/evil", ".", "manifest.json", "a/b", ""])] = node.pop(key)
    elif how == 2:
        node[key] = "@"
        deep = rng.choice([20, 200_000])
        path.write_text(json.dumps(tree).replace('"@"', "[" * deep + "]" * deep), encoding="utf-8")
        return f"{place}: {deep} deep"
    else:
        node[key] = rng.choice(ODD)
    path.write_text(json.dumps(tree), encoding="utf-8")
    what = {0: "taken out", 1: "renamed"}.get(how) or repr(node[key])
    return f"{place}: {what}"[:100]


def _other_array(path: Path, rng: random.Random) -> str:
    vectors = np.load(path)
    kind = rng.choice(["npz", "objects", "float64", "turned", "rows", "flat", "complex", "none"])
    made = {
        "objects": vectors.astype(object),
        "float64": vectors.astype(np.float64),
        "turned": np.asfortranarray(vectors),
        "rows": vectors[:-1],
        "flat": vectors.ravel(),
        "complex": vectors.astype(np.complex64),
        "none": vectors[:0],
    }
    with path.open("wb") as file:
        if kind == "npz":
            np.savez(file, vectors)
        else:
            np.save(file, made[kind], allow_pickle=True)
    return kind


def _other_table(path: Path, rng: random.Random) -> str:
    table = pq.read_table(path)
    column = rng.choice(table.column_names)
    kind = rng.choice(["dropped", "nulls", "numbers", "bytes", "lists", "twice", "rows", "none"])
    count = len(table)
    made = {
        "nulls": pa.nulls(count, table[column].type),
        "numbers": pa.array(range(count), pa.float64()),
        "bytes": pa.array([b"\xff\xfe"] * count),
        "lists": pa.array([["x"]] * count),
        "twice": pa.array(["x"] * count),
    }
    if kind in made:
        table = table.set_column(table.column_names.index(column), column, made[kind])
    elif kind == "dropped":
        table = table.drop_columns([column])
    else:
        table = pa.concat_tables([table, table]) if kind == "rows" else table.slice(0, 0)
    pq.write_table(table, path)
    return f"{column} {kind}"


def forge(folder: Path) -> None:
    """Make the manifest agree with the files as they are, as far as it can be read."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        for name in manifest["files"]:
            if (folder / name).is_file() and not (folder / name).is_symlink():
                manifest["files"][name] = file_hash(folder / name)
        manifest["settings_hash"] = settings_hash(manifest)
        path.write_text(json.dumps(manifest))
    except Exception:
        return


def state(root: Path) -> list:
    """Every name under a folder, with what tells if it was written."""
    paths = sorted(root.rglob("*"))
    return [(str(p), (s := p.lstat()).st_size, s.st_mtime_ns, s.st_mode) for p in paths]


def main(source: str, kind: str, first: str, last: str) -> None:
    """Try the mutations of a range of seeds."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print what they like
    expected = answers(Path(source))
    for seed in range(int(first), int(last)):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(source, Path(folder) / "a" / "b" / "export"))
            how = mutate(copy, random.Random(f"{kind} {seed}"))
            if kind == "forged":
                forge(copy)
            print(json.dumps([seed, how]), file=report, flush=True)
            before = state(Path(folder))
            signal.alarm(SECONDS)  # its default action, for a library would not let Python act
            try:
                outcome = "same" if answers(copy) == expected else "other answers"
            except UserError as error:
                outcome = f"refused: {error}"
            except BaseException as error:
                outcome = f"failed: {error!r}"
            signal.alarm(0)
            if state(Path(folder)) != before:
                outcome = "wrote"
        print(json.dumps([seed, how, outcome]), file=report, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
