"""Number of processes of a run; torchrun's takes precedence over the Trainer's options."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins.environments import TorchElasticEnvironment

from newsrec.console import is_first_process
from newsrec.errors import UserError

log = logging.getLogger(__name__)


def started_by_torchrun(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the Trainer's ``devices`` and ``num_nodes`` as torchrun sets them; else nothing.

    With ``devices: 1``, Lightning would train separately in each of torchrun's processes.

    Args:
        options: The Trainer's options; those that differ are logged.
    """
    if not TorchElasticEnvironment.detect():
        return {}
    here, machines = (int(os.environ[n]) for n in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    settled = {"devices": here, "num_nodes": machines}
    if isinstance(options["devices"], list) and len(options["devices"]) == here:
        del settled["devices"]  # the list has the right length and names the devices to use
    for name, number in settled.items():
        if options[name] not in (number, str(number), "auto", -1, "-1"):
            log.info("trainer.%s is %s, as torchrun has it", name, number)
    return settled


def refuse_unconnected(trainer: Trainer) -> None:
    """Refuse to train as one of several processes that do not form a group.

    Raises:
        UserError: On all processes but the first.
    """
    if trainer.world_size == 1 and not is_first_process():
        raise UserError(
            f"This is one of several processes, but trainer.devices is {trainer.num_devices} and "
            f"trainer.num_nodes {trainer.num_nodes}: each would train by itself. Set "
            "--trainer.devices to the processes of a machine and --trainer.num_nodes to the "
            "machines, or take --trainer configs/trainer/multinode.yaml."
        )


@contextmanager
def connection_mistakes() -> Iterator[None]:
    """If gloo's processes cannot connect, say which environment variable helps."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if "gloo" not in said.lower() or "connect" not in said.lower():
            raise
        raise UserError(
            f"The processes do not reach each other through gloo ({said[:160]}). It listens where "
            "the host name resolves to, often 127.0.0.1: set GLOO_SOCKET_IFNAME to the network's "
            "interface, as `ip addr` shows it, on every machine."
        ) from error
