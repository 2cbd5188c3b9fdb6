"""Everything the README and docs/ say to run is run; links lead somewhere; drawings are current."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.docs_runner import ROOT, RUN, PageRun, blocks
from tests.docs_stand_ins import make_files

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
NAMES = [page.name for page in PAGES]
WITH_BLOCKS = [page for page in PAGES if any(block.language in RUN for block in blocks(page))]
# Names that a page's Python takes from its reader.
GIVEN = {
    "own-loop.md": lambda: {"batches": [(torch.zeros(4, 3, 16, 16), torch.zeros(4).long())]},
}


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand_ins")
    make_files(folder)
    return folder


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_every_block_runs(
    page: Path, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(stand_ins, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    # PyTorch's threads wait for each other by spinning, which a machine shared with others makes slow.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    state = PageRun(GIVEN.get(page.name, dict)())
    try:
        for block in blocks(page):
            if block.language in RUN and block.reason is None:
                state.run(block)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_command_hides_from_the_runner(page: Path) -> None:
    """Blocks have a language and run, or say why not; commands are in fenced blocks."""
    for block in blocks(page):
        assert block.language, f"{page.name}, line {block.line}: a block without a language"
        if block.reason is not None:
            assert len(block.reason) > 10, f"{page.name}, line {block.line}: why is it not run?"
        known = (*RUN, "toml", "text", "json", "yaml", "ini")
        assert block.language in known, f"{page.name}, line {block.line}: {block.language}"
    outside = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    hidden = re.findall(
        r"^    (?:\$ )?(?:onnx-igpc|pip|python|make|import) .*$", outside, re.MULTILINE
    )
    assert not hidden


def anchors(page: Path) -> set[str]:
    """What ``page.md#...`` may name: GitHub's and Python-Markdown's way with headings is the same here."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://doi.org/"), f"{page.name}: {link} is not of ours"
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {link} leads nowhere"
        assert file.is_relative_to(ROOT)
        if page.parent == DOCS:
            assert file.is_relative_to(DOCS), f"{page.name}: {link} is not part of the site"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {link} names no heading"


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    listed: list[str] = []

    def collect(entry: object) -> None:
        if isinstance(entry, str):
            listed.append(entry)
        elif isinstance(entry, dict):
            for value in entry.values():
                collect(value)
        elif isinstance(entry, list):
            for value in entry:
                collect(value)

    collect(settings["nav"])
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_drawings_are_those_that_the_code_makes() -> None:
    drawn = runpy.run_path(str(DOCS / "drawings" / "draw.py"))["DRAWINGS"]
    files = {path.stem: path.read_text() for path in (DOCS / "drawings").glob("*.svg")}
    assert files.keys() == drawn.keys()
    for name, draw in drawn.items():
        assert draw().render() == files[name], "run: python docs/drawings/draw.py"


def test_the_runner_notices_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: it is slow -->\n```sh\nrm x\n```\n\n"
        "```sh\nonnx-igpc inspect none.onnx  # words\n```\n\n```python\nassert 1 == 2\n```\n"
        "```console\n$ python -m json.tool none.json\nan answer\n```\n```sh\nrm x\n```\n"
    )
    slow, *others = blocks(page)
    assert slow.reason == "it is slow"
    assert [block.language for block in others] == ["sh", "python", "console", "sh"]
    for block in others:
        with pytest.raises((AssertionError, SystemExit)):
            PageRun().run(block)


def test_stand_ins_are_rewritten_at_all(stand_ins: Path) -> None:
    """A stand-in on which every command is a no-op would prove nothing."""
    import onnx_igpc

    for name in ("model", "detector", "segmenter"):
        report = onnx_igpc.inspect(stand_ins / f"{name}.onnx", onnx_igpc.Published(32))
        assert [site.name for site in report.rewritten] == ["stem_pw", "block_pw"]
    assert len(list((stand_ins / "labelled").glob("*/*.png"))) == 12
