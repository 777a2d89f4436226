"""Sizes in bytes, as people write them."""

import argparse
import re


def size_argument(text: str) -> int:
    """Bytes of "48MB", "1.5GiB" or "48000000B"; argparse.ArgumentTypeError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kMG])(i?)B?|B)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number and its unit, for example 48MB, 1.5GiB or 48000000B")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kMG".index(found[2] or " "))
