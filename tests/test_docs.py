"""What the documentation says holds."""

import importlib
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmarks.__main__
import benchmarks.ablation
from options.test_options import TestOptions
from options.train_options import TrainOptions
from tests.conftest import COMBINE

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = {".py", ".html", ".css", ".js"}
SAMPLING = {"--seeds", "--samples_only", "--classes"}  # flags of sagan alone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


PROGRAMS: dict[str, Callable[[list[str]], object]] = {
    "train.py": TrainOptions().parse,
    "test.py": TestOptions().parse,
    "datasets/combine_A_and_B.py": COMBINE["parse"],
    "-m benchmarks": benchmarks.__main__.parse,
    "-m benchmarks.ablation": benchmarks.ablation.parse,
} | {
    f"-m scripts.{path.stem}": importlib.import_module(f"scripts.{path.stem}").parse
    for path in sorted((ROOT / "scripts").glob("*.py"))
    if "run_command" in path.read_text(encoding="utf-8")
}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile"], ids=lambda page: page.name)
def test_commands_parse(page):
    names = "|".join(map(re.escape, sorted(PROGRAMS, key=len, reverse=True)))
    text = page.read_text(encoding="utf-8").replace("$(python)", "python").replace("$@", "chart")
    for program, flags in re.findall(rf"python ({names}) ([^\n`&#()|[]+)", text):
        words = shlex.split(flags.replace("@", f"@{ROOT}/"))
        if "--help" in words:
            continue
        if program == "test.py" and "--weights" in words:  # whose file names the model
            words = ["--model", "sagan" if "cats" in flags else "test", *words]
        elif program == "test.py" and SAMPLING & set(words):  # the run names the model
            words = ["--model", "sagan", *words]
        PROGRAMS[program](words)


def test_every_source_file_is_on_the_map():
    overview = (ROOT / "docs" / "overview.md").read_text(encoding="utf-8")
    folders = ("models", "options", "data", "training", "inference", "display", "util", "scripts", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in SOURCES]
    named = {Path(name).name for name in re.findall(r"[\w./]+", overview)}
    assert [str(path.relative_to(ROOT)) for path in files if path.name not in named] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_examples_in_the_help_parse(program, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program](["--help"])
    assert ended.value.code == 0
    _, found, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert found and examples.strip()
    for line in examples.splitlines():
        assert line.startswith(f"  python {program}")
        PROGRAMS[program](shlex.split(line.removeprefix(f"  python {program}")))


def test_extras_that_are_named_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    files = [*PAGES, ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "scripts" / "publish.py"]
    named = ",".join(
        text for path in files for text in re.findall(r'"\.\[([\w,]+)\]"', path.read_text(encoding="utf-8"))
    )
    assert named and set(named.split(",")) <= known.keys()


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.txt")), ids=lambda path: path.stem)
def test_recipes_are_named_like_their_target(recipe):
    assert TrainOptions().parse([f"@{recipe}"]).name == recipe.stem
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^(\w+ )*{recipe.stem}( \w+)*:", makefile, re.MULTILINE)
