"""Text out of models: engines and decoding methods."""
