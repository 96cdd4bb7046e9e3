"""What the documentation says holds."""

import re
from pathlib import Path

import pytest

from options.test_options import TestOptions
from options.train_options import TrainOptions

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page):
    for script, flags in re.findall(r"python (train|test)\.py ([^\n`&#[)]+)", page.read_text(encoding="utf-8")):
        words = flags.replace("@", f"@{ROOT}/").split()
        if "--help" in words:
            continue
        opt = (TrainOptions if script == "train" else TestOptions)().parse(words)
        assert opt.name


def test_every_source_file_is_on_the_map():
    overview = (ROOT / "docs" / "overview.md").read_text(encoding="utf-8")
    folders = ("models", "options", "data", "util", "scripts")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    known = [path for path in files if path.name != "__init__.py" and "display" not in path.parts]
    assert [str(path.relative_to(ROOT)) for path in known if path.name not in overview] == []


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.txt")), ids=lambda path: path.stem)
def test_recipes_are_named_like_their_target(recipe):
    assert TrainOptions().parse([f"@{recipe}"]).name == recipe.stem
    assert f"{recipe.stem}" in (ROOT / "Makefile").read_text(encoding="utf-8")
