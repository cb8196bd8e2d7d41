"""The parts that use Lightning: training, callbacks and checkpoints."""
