"""Records of test sets: files with a JSON value a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")


def read(path: str | Path, record_of: Callable[[Any], Record], form: str, limit: int | None = None) -> list[Record]:
    """What `record_of` makes of each line that is not empty, of at most `limit`. ValueError names the line that it does not take, and says
    that it is not `form`; so it does of a file without records."""
    records: list[Record] = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip() and (limit is None or len(records) < limit):
                try:
                    records.append(record_of(json.loads(line)))
                except (KeyError, TypeError, ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: not {form} ({error})") from error
    if not records:
        raise ValueError(f"{path}: not one line that is {form}")
    return records
