"""What ``make docs`` adds to the pages of this folder: pages that lie elsewhere, and those made from the program.

Links lead from file to file, so that they work on GitHub; here they are turned towards the pages of the site.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from napari_unet.__main__ import _app

ROOT = Path(__file__).resolve().parents[1]
#: Pages that belong to the code beside them, or to the whole project.
ELSEWHERE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "napari_unet/weights/README.md")
#: The rooms whose functions a script may call. The window and the command line are used by hand.
ROOMS = (
    *("domain", "io", "patches", "networks", "editing", "evaluation"),
    *("inference", "training", "storage", "compute", "exchange", "session"),
)
_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in this folder."""
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in ELSEWHERE}
    pages["reference/commands.md"] = _commands()
    pages["reference/index.md"] = _rooms()
    pages |= {f"reference/{room}.md": _room(room) for room in ROOMS}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links from where the file lies in the repository to where the page lies in the site."""
    name = page.file.src_uri
    if name.startswith("reference/"):
        return markdown
    here = posixpath.dirname(name if name in ELSEWHERE else f"docs/{name}")

    def turned(link: re.Match[str]) -> str:
        in_repository = posixpath.normpath(posixpath.join(here, link[1]))
        in_site = in_repository.removeprefix("docs/")
        if files.get_file_from_path(in_site) is None:
            if not (ROOT / in_repository).exists():
                return link[0]  # mkdocs says that it is broken
            return f"]({config.repo_url}/blob/main/{in_repository})"
        return f"]({posixpath.relpath(in_site, posixpath.dirname(name) or '.')}{link[2] or ''})"

    return _LINK.sub(turned, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Drop the roles of Sphinx from docstrings; what they name stands in code letters anyway."""
    return re.sub(r":(?:func|class|meth|mod|attr|data):(?=<code>)", "", html)


def _commands() -> str:
    """Return a page with the help of every command."""
    program = typer.main.get_command(_app())  # type: ignore[arg-type]
    parts = [
        "# Help of every command\n\nMade from the program itself. [Command line](../command-line.md) explains it.\n"
    ]
    for words, command in _walk(program, ["napari-unet"]):
        rows = "\n".join(_row(parameter) for parameter in command.params)
        table = f"\n| | values | meaning |\n|---|---|---|\n{rows}\n" if rows else ""
        parts.append(f"## {' '.join(words)}\n\n{command.help}\n{table}")
    return "\n".join(parts)


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    values = f"`{parameter.metavar}`" if parameter.metavar else ""
    plain = parameter.default if isinstance(parameter.default, str | int | float) else None
    default = "" if plain is None or plain is False else f" Default: `{plain}`."
    meaning = f"{getattr(parameter, 'help', None) or ''}{default}{' Required.' if parameter.required else ''}"
    return f"| {names} | {values.replace('|', chr(92) + '|')} | {meaning.replace('|', chr(92) + '|').strip()} |"


def _walk(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _walk(below, [*words, name])


def _rooms() -> str:
    """Return the first page of the reference: what a script begins with."""
    lines = [f"- [{room}]({room}.md)" for room in ROOMS]
    return (
        "# Python\n\nMade from the docstrings. What each room is for stands in [the architecture](../architecture.md); "
        "a script that reads scans begins with [`read_scan`][napari_unet.io.registry.read_scan]. Before 1.0 names may "
        "change from one version to the next; the [changes](../CHANGELOG.md) say so.\n\n" + "\n".join(lines) + "\n"
    )


def _room(room: str) -> str:
    """Return the page of one room: all its modules."""
    folder = ROOT / "napari_unet" / room
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if not path.name.startswith("_")
    )
    return f"# {room}\n\n" + "\n".join(f"::: {module}\n" for module in modules)
