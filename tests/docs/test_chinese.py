"""The Chinese pages keep step with the English ones: the same code, headings and links, in another language."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from pages import ROOT, Block, blocks

PAIRS = {
    "tutorial": (ROOT / "docs" / "tutorial.md", ROOT / "docs" / "zh" / "tutorial.md"),
    "readme": (ROOT / "README.md", ROOT / "README.zh-CN.md"),
}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def code(block: Block) -> object:
    """What a block does: its syntax tree without docstrings, its settings, its lines without comments."""
    if block.language == "python":
        tree = ast.parse(block.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        return ast.dump(tree)
    if block.language == "toml":
        return tomllib.loads(block.text)
    return [re.sub(r"\s+#.*$", "", line) for line in block.text.splitlines()]


def headings(page: Path) -> list[int]:
    """The level of each heading, outside of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def links(page: Path) -> list[str]:
    """Where its links lead, seen from the repository's root, without the pages' links to each other."""
    found = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    targets = [str((page.parent / target).resolve().relative_to(ROOT)) for target in found if "://" not in target]
    own = {str(path.relative_to(ROOT)) for pair in PAIRS.values() for path in pair}
    return [target for target in targets if target not in own]


@pytest.mark.parametrize("name", PAIRS)
def test_code_is_the_same_but_for_comments(name):
    english, chinese = (blocks(page) for page in PAIRS[name])
    assert [(block.language, block.title) for block in chinese] == [(block.language, block.title) for block in english]
    for ours, theirs in zip(english, chinese, strict=True):
        assert code(theirs) == code(ours)


@pytest.mark.parametrize("name", PAIRS)
def test_headings_tables_and_links_are_the_same(name):
    english, chinese = PAIRS[name]
    assert headings(chinese) == headings(english)
    rows = [re.findall(r"^\| .*$", page.read_text(encoding="utf-8"), re.MULTILINE) for page in (english, chinese)]
    assert [row.count("|") for row in rows[1]] == [row.count("|") for row in rows[0]]
    assert links(chinese) == links(english)


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_chinese(name):
    """Every paragraph of more than a few words has Chinese in it, so nothing was left untranslated."""
    text = re.sub(r"^```.*?^```", "", PAIRS[name][1].read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = [part for part in re.split(r"\n\s*\n", text) if not part.lstrip().startswith(("|", "!["))]
    assert not [part for part in prose if len(part) > 60 and not CHINESE.search(part)]


def test_a_change_of_code_is_noticed_and_a_change_of_comment_is_not():
    ours = Block("python", "", 'def f(x):\n    """Twice."""\n    return 2 * x  # doubled\n')
    assert code(ours) == code(Block("python", "", 'def f(x):\n    """两倍。"""\n    return 2 * x  # 加倍\n'))
    assert code(ours) != code(Block("python", "", "def f(x):\n    return 3 * x\n"))
    assert code(Block("toml", "", "a = 1 # one\n")) == code(Block("toml", "", "a = 1 # 一\n"))
    assert code(Block("console", "", "$ upslope train  # go\n")) == code(
        Block("console", "", "$ upslope train  # 开始\n")
    )
    assert code(Block("console", "", "$ upslope train\n")) != code(Block("console", "", "$ upslope resume\n"))
