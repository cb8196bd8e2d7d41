"""Exports a trained model as a folder that needs no PyTorch."""
