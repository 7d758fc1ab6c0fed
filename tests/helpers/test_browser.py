"""The browser of the tests is real, records errors and reaches no network."""

import pytest

from tests.helpers.browser import is_local

pytest_plugins = ["tests.helpers.browser"]
pytestmark = pytest.mark.slow

PAGE = """<!doctype html><title>t</title><img src="http://example.com/x.png">
<script>console.error("planted"); setTimeout(() => nothing.there, 0)</script>"""


def test_is_local():
    assert all(map(is_local, ("file:///a", "data:text/plain,a", "http://localhost:6006/x", "http://127.0.0.1/")))
    assert not any(map(is_local, ("http://example.com", "https://localhost.example.com/", "ws://example.com")))


def test_visit__tells_errors_and_refuses_the_network(visit, tmp_path):
    path = tmp_path / "page é.html"
    path.write_text(PAGE)
    seen = visit(path, width=360, dark=True)
    seen.page.wait_for_timeout(200)
    assert seen.refused == ["http://example.com/x.png"]
    assert any("planted" in error for error in seen.errors)
    assert any("nothing is not defined" in error for error in seen.errors)
    assert seen.page.evaluate("[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [360, True]


def test_visit__a_page_in_order_has_no_errors(visit, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><title>t</title><p>fine")
    seen = visit(path)
    assert (seen.errors, seen.refused, len(seen.requested)) == ([], [], 1)
