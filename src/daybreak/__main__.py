"""``python -m daybreak``."""

from .cli import main

main()
