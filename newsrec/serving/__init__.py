"""A trained model in a process of its own."""
