"""Everything that people read: tables, sentences, pictures, the HTML page, run folders and their comparison.

Files, each importing only from those above it::

    diary            The failure diary as a reader sees it: what the reports of a run tell of each mode, put
    diary_storage    The diary on disk: its state lies beside each analysis, so that a resumed run goes on from
    sentences        How far to trust a finding, in plain sentences made of the report's own numbers
    tables           Reports as text: a table for the terminal, Markdown for dashboards and files
    feature_names    What people call the features that rules mention: a small YAML file that they edit, kept from
    images           Images for people: thumbnails with text, heat maps, the images that a feature likes best
    interventions    What the interventions of a report did, in words
    example_rows     What is known of single examples, as rows that a table or a projector shows beside their
    gallery          The pictures of an analysis: what is shown, in rows of tiles, for any sink to lay out as it
    gallery_storage  The pictures of an analysis in one JSON file, images as PNG: written within bounds, and read
    run_folder       What a run leaves on disk, and how it is read back: reports, the table of examples, pictures.
    html             The report of a run as one HTML file that needs no network and no server
    mode_comparison  What became of the failure modes of one run in another
    comparison       Two runs compared from their saved records alone: what was fixed, what is new, what persists
"""

from lightning_failures.report.comparison import compare
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.html.write import write_html
from lightning_failures.report.run_folder import open_run
from lightning_failures.report.tables import class_table

__all__ = ["Gallery", "Picture", "class_table", "compare", "open_run", "write_html"]
