"""The model, from batches to scores: plain PyTorch modules that open no files."""
