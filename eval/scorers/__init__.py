"""The scorers, one a file."""
