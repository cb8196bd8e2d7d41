"""The pretrained language model (PLM) inside the recommender."""
