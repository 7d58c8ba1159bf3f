"""Blocks and equations that methods share; no control flow of any method."""
