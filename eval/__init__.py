"""Numbers, with intervals, about text, pairs and models."""
