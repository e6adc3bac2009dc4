"""The commands and programs that a Markdown page shows."""

import ast
import re
import shlex
from pathlib import Path

from helpers.tree import ROOT


def blocks(page: str, language: str = "") -> list[str]:
    """The code blocks of a page of the repository that are marked with ``language``."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def lines(page: str) -> list[str]:
    """The lines of a page's unmarked blocks; a line that ends in a backslash goes on."""
    return [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]


def commands(page: str) -> list[list[str]]:
    """A page's commands of vamf: the job's name and its arguments."""
    return [found for line in lines(page) if (found := command(line))]


def command(line: str) -> list[str] | None:
    """The job and arguments of ``vamf NAME ...`` or ``-m jobs.NAME ...``; None of other lines."""
    words = shlex.split(line, comments=True)
    for at, word in enumerate(words):
        if word == "vamf" and (at == 0 or words[:2] == ["uv", "run"]):
            return words[at + 1 :]
        if at and words[at - 1] == "-m" and word.startswith("jobs."):
            return [word.removeprefix("jobs."), *words[at + 1 :]]
    return None


def links(page: str) -> list[Path]:
    """The files that a page links to, besides its pictures, without the parts after ``#``."""
    text = (ROOT / page).read_text()
    found = re.findall(r"(?<!!)\[[^\[\]]+\]\(([^)#]+)", text)
    return [(ROOT / page).parent / link for link in found if "://" not in link]


def messages(*folders: str) -> list[str]:
    """All texts in the code below these folders, with ``…`` in the place of inserted values."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    return [text for node in nodes if (text := _text(node)) is not None]


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(_text(part) or "…" for part in node.values))
    return None
