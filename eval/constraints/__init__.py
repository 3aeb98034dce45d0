"""Constraints on an answer that plain code can check, by kind."""
