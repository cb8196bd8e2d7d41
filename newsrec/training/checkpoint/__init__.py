"""What a run saves, and how a checkpoint is read again and checked."""
