"""News recommendation on MIND with Fastformer, a pretrained language model and PyTorch Lightning."""

__version__ = "0.1.0"
