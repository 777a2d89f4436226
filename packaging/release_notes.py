"""Release notes from CHANGELOG.md: the section of a tag, which must be the version of pyproject.toml.

python packaging/release_notes.py v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version() -> str:
    """The project's, from the one place where it stands."""
    found = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError("pyproject.toml: no version")
    return found[1]


def notes(changelog: str, tag: str) -> str:
    """The text below `## VERSION`, up to the next heading of that level. ValueError where there is none, or it is empty."""
    wanted = tag.removeprefix("v")
    sections = re.split(r"^## +(.+?) *$", changelog, flags=re.MULTILINE)
    for heading, text in zip(sections[1::2], sections[2::2], strict=True):
        if heading.split()[0].strip("[]") == wanted:
            if not text.strip():
                raise ValueError(f"CHANGELOG.md: the section {heading} is empty")
            return text.strip() + "\n"
    raise ValueError(f'CHANGELOG.md: no section "## {wanted}"; there are: {", ".join(sections[1::2])}')


def main() -> None:
    """Prints the notes of the tag in argv[1]."""
    try:
        if sys.argv[1] != f"v{version()}":
            raise ValueError(f"tag {sys.argv[1]}: pyproject.toml says {version()}, so the tag would be v{version()}")
        text = notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), sys.argv[1])
    except ValueError as error:
        sys.exit(f"release notes: {error}")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
