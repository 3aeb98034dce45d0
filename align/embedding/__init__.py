"""The losses of embedders, one a file."""
