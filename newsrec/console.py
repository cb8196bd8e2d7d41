"""What a person sees on the terminal: our messages, without other libraries' asides."""

import logging
import os
import warnings

ASIDES = (
    r".*does not have many workers.*",  # 0 workers is the fastest choice here
    r".*LightningCLI's args parameter.*",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*in eval mode at the start of training.*",  # a frozen PLM belongs there
    r".*smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
)


def show_our_messages() -> None:
    """Print messages of ``newsrec`` as they are, on the first process only, and hush asides."""
    logger = logging.getLogger("newsrec")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]  # a new one each time: stderr may be another by now
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    logger.setLevel(logging.INFO if first else logging.WARNING)
    for message in ASIDES:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    asides = ("GPU available: False", "TPU available", "Loading `train_dataloader`")
    return not ("Tip:" in text or text.startswith(asides))
