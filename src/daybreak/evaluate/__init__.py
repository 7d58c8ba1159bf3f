"""Protocols that say how good a backbone is."""
