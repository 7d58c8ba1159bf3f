"""One file a method: each turns views into a loss."""
