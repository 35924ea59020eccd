"""Numbers on a command line."""

import argparse


def at_least_one(text: str) -> int:
    """A whole number from 1 up, or argparse's own refusal."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)
