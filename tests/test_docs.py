"""The documentation against the code: what it names exists, and what exists is named. No sentence is judged here."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import pytest
import typer
import yaml

from napari_unet import __version__
from napari_unet.__main__ import _app
from napari_unet.domain.settings import ModelSettings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
COMMANDS: dict[str, Any] = cast(Any, typer.main.get_command(cast(typer.Typer, _app()))).commands
HELP = {"--help"}

_LONG_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
#: Options of the measuring programs.
_BENCHMARKS = {
    option
    for program in (ROOT / "benchmarks").glob("*.py")
    for option in re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", program.read_text(encoding="utf-8"))
}


def _of_other_programs() -> set[str]:
    """Return the options of the programs that the pages start beside this one."""
    from distributed.cli import dask_scheduler, dask_worker
    from torch.distributed.run import get_args_parser

    of_dask = {
        o for main in (dask_scheduler.main, dask_worker.main) for p in main.params for o in (*p.opts, *p.secondary_opts)
    }
    of_torchrun = {o for action in get_args_parser()._actions for o in action.option_strings}
    of_pip_and_uv = {
        "--constraint",
        "--extra-index-url",
        "--find-links",
        "--index-url",
        "--no-index",
        "--resolution",
        "--wheel-dir",
    }
    return of_dask | of_torchrun | of_pip_and_uv | {"--gres", "--check", "--quiet"}


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def command_sections() -> dict[str, str]:
    """Return the reference's text by command; a heading may name several."""
    parts = re.split(r"^## (.+)$", text(DOCS / "command-line.md"), flags=re.MULTILINE)
    return {
        command: body
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
        for command in re.findall(r"`([a-z-]+)`", heading)
    }


def long_options(command: str) -> set[str]:
    known = COMMANDS[command]
    commands = [known, *getattr(known, "commands", {}).values()]
    return {o for each in commands for parameter in each.params for o in parameter.opts if o.startswith("--")}


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert set(command_sections()) == set(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_commands_section_names_exactly_its_options(command: str) -> None:
    assert set(_LONG_OPTION.findall(command_sections()[command])) - HELP == long_options(command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_invents_an_option(page: Path) -> None:
    known = set.union(*(long_options(command) for command in COMMANDS)) | HELP | _BENCHMARKS
    found = set(_LONG_OPTION.findall(text(page)))
    assert found <= known or found <= known | _of_other_programs()


def fenced(languages: str) -> list[Any]:
    """Return the blocks of code in some languages, each under the name of its page."""
    block = re.compile(rf"^( *)```(?:{languages})\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    return [
        pytest.param(dedent(found[2]), id=f"{name_of(page)}:{text(page)[: found.start()].count(chr(10)) + 1}")
        for page in PAGES
        for found in block.finditer(text(page))
    ]


@pytest.mark.parametrize("code", fenced("python"))
def test_python_in_the_pages_can_be_parsed(code: str) -> None:
    assert ast.parse(code).body  # and says something


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("code", fenced("bash|sh"))
def test_commands_in_the_pages_are_right(code: str) -> None:
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)
    for line in code.replace("\\\n", " ").splitlines():
        words = line.partition("#")[0].split()
        heads = [i for i, word in enumerate(words) if word.endswith("napari-unet") and words[i - 1 : i] != ["venv"]]
        for command, *options in filter(None, (words[i + 1 :] for i in heads)):
            assert command in COMMANDS
            assert set(filter(_LONG_OPTION.fullmatch, options)) <= long_options(command)


def test_the_site_has_every_page() -> None:
    assert [page.name for page in DOCS.glob("*.md") if f": {page.name}\n" not in text(ROOT / "mkdocs.yml")] == []


def test_settings_that_the_pages_set_exist() -> None:
    named = {key for page in PAGES for key in re.findall(r"--set ([a-z_.]+)=", text(page))}
    assert named
    assert named <= set(ModelSettings.keys())


def test_every_dependency_stands_in_the_table_with_a_reason() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.match(r"[A-Za-z0-9_.-]+", requirement)[0] for requirement in wanted} - {project["name"]}  # type: ignore[index]
    section = text(DOCS / "architecture.md").split("## Dependencies")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+`) \| (.+) \|$", section, re.MULTILINE)
    assert {name for cell, _ in rows for name in re.findall(r"`([^`]+)`", cell)} == names
    assert all(reason.strip() for _, reason in rows)


def test_every_room_stands_in_the_architecture_and_every_module_named_there_exists() -> None:
    package, page = ROOT / "napari_unet", text(DOCS / "architecture.md")
    rooms = {init.parent.relative_to(package).as_posix() for init in package.rglob("__init__.py")} - {"."}
    assert {room for room in rooms if f"{Path(room).name}/" not in page} == set()
    rows = dict(re.findall(r"^\| `([a-z]+)/` \| (.+) \|$", page, re.MULTILINE))
    assert set(rows) == {room for room in rooms if "/" not in room}
    invented = {
        f"{room}/{name}"
        for room, row in rows.items()
        for name in re.findall(r"`([a-z_]+)`", row)
        if not (package / room / f"{name}.py").exists()
    }
    assert invented == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", text(page))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        found = target.exists()
        if found and anchor:
            found = anchor in {slug(heading) for heading in re.findall(r"^#+ (.+)$", text(target), re.MULTILINE)}
        if not found:
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_path_of_one_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.~])/(?:work|root|home|Users)\b", text(page)) == []


def test_every_page_is_listed() -> None:
    listed = text(DOCS / "index.md")
    assert [
        page.name for page in sorted(DOCS.glob("*.md")) if page.name != "index.md" and page.name not in listed
    ] == []


def test_the_readme_is_short() -> None:
    assert len(text(ROOT / "README.md").splitlines()) <= 100


def test_the_changelog_and_the_citation_know_this_version() -> None:
    assert f"## [{__version__}]" in text(ROOT / "CHANGELOG.md")
    assert yaml.safe_load(text(ROOT / "CITATION.cff"))["version"] == __version__


def test_hooks_need_no_network() -> None:
    config = yaml.safe_load(text(ROOT / ".pre-commit-config.yaml"))
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert {hook["language"] for repository in config["repos"] for hook in repository["hooks"]} == {"system"}


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", text(ROOT / "Makefile"), re.MULTILINE))
    pages = [*PAGES, *(ROOT / ".github" / "workflows").glob("*.yml")]
    named = {
        target for page in pages for target in re.findall(r"(?:`|^|run: )make ([a-z0-9-]+)", text(page), re.MULTILINE)
    }
    assert named
    assert named <= targets
