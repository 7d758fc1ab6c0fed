"""The page of a single result: a file that needs nothing else, and inline in notebooks."""

from __future__ import annotations

import html
import re

import pytest
import torch

import lightning_failures.report
from lightning_failures.errors import ConfigurationError
from lightning_failures.report import save_html
from tests.report.test_drawing import N, fetch, result


def test_save_html__with_and_without_images(tmp_path):
    found, _ = result()
    path = save_html(found, tmp_path / "page.html", images=fetch)
    page = path.read_text(encoding="utf-8")
    sentence = "Images of cat with light night are wrong"
    assert sentence in page
    assert page.count("data:image/") > 20
    tensor = save_html(found, tmp_path / "tensor.html", images=torch.stack(fetch(range(0, 2 * N, 2))))
    assert tensor.read_text(encoding="utf-8").count("data:image/") == page.count("data:image/")
    bare = save_html(found, tmp_path / "bare.html").read_text(encoding="utf-8")
    assert sentence in bare
    assert "data:image/" not in bare.split("</head>")[1]
    assert sentence in save_html(found.report, tmp_path / "report.html").read_text(encoding="utf-8")


def test_save_html__wrong_number_of_images(tmp_path):
    found, _ = result()
    with pytest.raises(ConfigurationError, match=f"one for each of the {N} distinct ids"):
        save_html(found, tmp_path / "page.html", images=torch.zeros(3, 3, 8, 8))


def test_repr_html__is_the_page_in_a_frame():
    assert lightning_failures.report.save_html is save_html  # registers the display
    found, _ = result()
    shown = found._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert 'sandbox="allow-scripts"' in shown
    inner = html.unescape(re.search('srcdoc="(.*?)" sandbox', shown, re.DOTALL)[1])
    assert "Images of cat with light night are wrong" in inner
    assert len(shown) < 300_000
