"""The embedders, one a file."""
