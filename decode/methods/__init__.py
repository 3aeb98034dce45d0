"""Decoding methods, a file each."""
