"""A trained model written as a folder that needs no PyTorch."""
