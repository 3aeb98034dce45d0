"""Contrasts out of engines: preference pairs and what they are made from."""
