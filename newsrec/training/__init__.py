"""The Lightning side: training, callbacks and checkpoints."""
