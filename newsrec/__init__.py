"""News recommendation on MIND: Fastformer on a pretrained language model, with Lightning."""

__version__ = "0.1.0"
