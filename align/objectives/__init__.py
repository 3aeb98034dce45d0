"""The objectives, one a file."""
