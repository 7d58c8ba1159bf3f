"""The loop that turns losses into a backbone."""
