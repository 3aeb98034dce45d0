"""The sources of prompts, one a file."""
