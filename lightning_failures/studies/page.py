"""A study as one HTML file that works offline, with the keyboard alone, and downloads the answers as JSON.

The page contains its pictures, style and script, and a content security policy that forbids everything else. All texts
are set by the script as text, never as HTML.
"""

from __future__ import annotations

import html
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from lightning_failures.report.html.render import data_block
from lightning_failures.studies.records import Study

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src {digest}; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="main"></main>
<script type="application/json" id="study">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def study_page(study: Study) -> str:
    """Return a study as one HTML page.

    The right answers are in the source of the page, from which the file of answers takes them: do not tell people.

    >>> from lightning_failures.studies.tasks import mixed, questionnaire_questions
    >>> page = study_page(mixed("questionnaire", questionnaire_questions()))
    >>> page.count("<script"), "http" in page.replace("http-equiv", "")
    (2, False)
    """
    script, style = _asset("study.js"), _asset("study.css")
    digest = f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
    return _PAGE.format(
        digest=digest, title=html.escape(study.title), style=style, data=data_block(study.to_dict()), script=script
    )


def _asset(name: str) -> str:
    return (files("lightning_failures.studies") / "templates" / name).read_text(encoding="utf-8")
