"""The documents of the project, taken apart: their blocks of code, inline code, links, headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
FENCE = "```"


def documents() -> list[Path]:
    """Every Markdown file that is written for readers of the project."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    """Of its first line, counted from 1."""
    language: str
    text: str
    not_run: str | None
    """The reason, where a comment before the block says that it is not to be run."""

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> list[str]:
        """The lines of a shell block, continued lines joined, without comments and empty lines."""
        lines = (strip_comment(line) for line in self.text.replace("\\\n", " ").splitlines())
        return [" ".join(line.split()) for line in lines if line.strip()]


def strip_comment(line: str) -> str:
    return "" if line.lstrip().startswith("#") else line.partition("  # ")[0]


def blocks(path: Path) -> list[Block]:
    found, before, inside = [], "", None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if inside is not None:
            if line.strip() == FENCE:
                first, language, lines, reason = inside
                name = str(path.relative_to(ROOT))
                found.append(Block(name, first, language, "\n".join(lines), reason))
                inside, before = None, ""
            else:
                inside[2].append(line)
        elif line.startswith(FENCE):
            marked = NOT_RUN.fullmatch(before)
            inside = (number + 1, line[3:].strip(), [], marked[1] if marked else None)
        elif line.strip():
            before = line.strip()
    assert inside is None, f"{path}: the block from line {inside and inside[0]} on has no end"
    return found


def prose(path: Path) -> str:
    """The text without its fenced blocks and comments, line numbers kept."""
    text = re.sub(
        r"^```.*?^```$",
        lambda block: "\n" * block[0].count("\n"),
        path.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    return re.sub(r"<!--.*?-->", lambda note: "\n" * note[0].count("\n"), text, flags=re.DOTALL)


def inline_code(path: Path) -> list[tuple[int, str]]:
    """(line, text) of everything between single backticks; it may go on in the next line."""
    text = prose(path)
    return [
        (text.count("\n", 0, code.start()) + 1, " ".join(code[1].split()))
        for code in re.finditer(r"`([^`]+)`", text)
    ]


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
