"""The site: built without a warning, its notebooks executed, complete, and independent of other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.test_faces import FACES

pytest.importorskip("myst_nb")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LOADED = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=["']([^"']+)""")
LINK = re.compile(r"""<a\b[^>]*?\bhref=["']([^"']+)""")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. Any warning is an error, and so is an error in a cell of a notebook."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", folder / "read", DOCS, folder / "site"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    built = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


def pages(site: Path) -> Iterator[tuple[Path, str]]:
    for page in sorted(site.rglob("*.html")):
        yield page, page.read_text()


def text_of(page: Path) -> str:
    """The text of a page without its tags."""
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_site__has_a_page_for_every_source(site):
    sources = {
        path.relative_to(DOCS).with_suffix("") for suffix in ("md", "ipynb") for path in DOCS.rglob(f"*.{suffix}")
    }
    assert len(sources) > 30
    assert [str(name) for name in sorted(sources) if not (site / name.with_suffix(".html")).is_file()] == []


def test_site__links_lead_somewhere(site):
    texts = dict(pages(site))
    ids = {page: set(re.findall(r"""\bid=["']([^"']+)""", text)) for page, text in texts.items()}
    lost = []
    for page, text in texts.items():
        for link in LINK.findall(text):
            path, _, anchor = unquote(unescape(link)).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            target = (page.parent / path).resolve() if path else page
            if not target.is_file() or (anchor and target in ids and anchor not in ids[target]):
                lost.append(f"{page.relative_to(site)}: {link}")
    assert lost == []


def test_site__loads_nothing_from_other_hosts(site):
    loaded = {target for _, text in pages(site) for target in LOADED.findall(text)}
    for sheet in site.rglob("*.css"):
        loaded |= set(re.findall(r"""(?:url\(|@import\s+)["']?([^"')]+)""", sheet.read_text()))
    assert len(loaded) > 10
    assert [target for target in sorted(loaded) if re.match(r"(?:https?:)?//", target)] == []


def test_site__describes_every_public_name(site):
    text = "".join(page.read_text() for page in sorted((site / "api").glob("*.html")))
    described = {name.rpartition(".")[2] for name in re.findall(r'id="(lightning_failures\.[\w.]+)"', text)}
    described |= set(re.findall(r'<span class="pre">(\w+)</span>', text))  # names in sentences
    assert {face: missing for face, exported in FACES.items() if (missing := set(exported.split()) - described)} == {}


def test_notebook__first_look(site):
    text = text_of(site / "notebooks" / "first_look.html")
    found, named = map(int, re.search(r"(\d+) classes have a pattern; for (\d+) of them", text).groups())
    assert found >= named >= 6


def test_notebook__own_images(site):
    text = text_of(site / "notebooks" / "own_images.html")
    assert re.search(r"1\. .* are wrong [\d.]+ % of the time", text)
    assert "report.html" in text
    assert "id,label,prediction,failed,flagged" in text


def test_notebook__finding_to_fix_helps(site):
    text = text_of(site / "notebooks" / "finding_to_fix.html")
    assert re.search(r"Helped: of \d+ flagged examples", text)
    before, after = map(float, re.search(r"unusual tints: ([\d.]+) before, ([\d.]+) after", text).groups())
    assert after > before + 0.1
