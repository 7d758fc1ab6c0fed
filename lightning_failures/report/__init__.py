"""Everything that people read: tables, sentences, pictures, the HTML page, run folders and their comparison.

Files, each importing only from those above it::

    text_tables      Tables of cells as text: aligned for the terminal, or as Markdown
    diary            The failure diary for readers: the history of each failure mode over the reports of a run
    diary_storage    The diary on disk: one state an analysis, from which a resumed run continues
    sentences        How far to trust a finding, in sentences made of the numbers of the report
    findings         Findings in words: what is wrong, how sure, what next; or why nothing was found
    tables           Tables and lists of a report, for the terminal and as Markdown
    slices           Values of known attributes with which examples fail more often than others do
    shared           The pattern that all classes share: how far to trust it, captions, attributes, classes
    confusions       Which classes are mistaken for which, and what the flagged failures are mistaken for
    sparse           The sparse decision layer: its section as records, a sentence, and Markdown
    feature_names    User-given names of features: a small YAML file that people edit
    projection       Embeddings projected to a plane, for the map of the HTML page
    images           Thumbnails, image grids and heat maps as tensors
    interventions    What the interventions of a report did, in sentences
    markdown         One analysis as Markdown: the sections of dashboards, and the report.md in its folder
    image_encoding   Images as PNG or JPEG, and as data URIs for HTML and JSON
    example_rows     What is known of single examples, for tables and the projector
    gallery          The pictures of an analysis: structured rows of tiles that each writer lays out
    gallery_storage  The pictures of an analysis in one JSON file, bounded when written, validated when read
    drawing          Pictures that need no fitted model: of findings, and of the failures of each class
    studies          The studies with people that were made of a run: their pages and scores
    run_folder       The files that a run leaves on disk, and reading them back
    export_records   The findings of a run as flat records, for files that other tools read
    pins             Pinned slices for readers: pin a slice of a run, and the checks of pins as a table in words
    method_comparison  What each method ranks first: how much of it is wrong, what methods share, whom they find
    html             The report of a run as one HTML file that needs neither network nor server
    save             The page of a single result, without a run: to a file, and inline in notebooks
    mode_comparison  The failure modes of one run, matched with those of another
    example_pairs    Which example of one run is which example of another run
    transfer         What one run found, judged on the failures of another network on the same images
    comparison       Comparison of two runs from their files: fixed, new and persistent failures
"""

from lightning_failures.report.comparison import compare
from lightning_failures.report.findings import findings_lines
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.html.write import write_html
from lightning_failures.report.run_folder import open_run
from lightning_failures.report.save import save_html
from lightning_failures.report.tables import class_table

__all__ = ["Gallery", "Picture", "class_table", "compare", "findings_lines", "open_run", "save_html", "write_html"]
