"""The report of a run as one HTML file that needs neither network nor server.

Files, each importing only from those above it::

    tree     A failure tree as a nested outline of its nodes
    charts   The charts of the page as Vega-Lite specifications, by name
    figures  Numbers of the page, each read from a record by its path and marked up with it
    images   The images of the page, encoded until they reach the size that a page may have
    pictures The pictures of the page, taken by tag and encoded
    verdict  The verdict at the top: what is wrong, how sure, what next
    matrix   The confusion matrix: the classes with most confusions, counted in the table of examples
    sparse   The section of the sparse decision layer
    browse   The data behind the table of examples that the page filters, sorts and pages through
    page     The content of the page, selected and bounded: the model behind the templates
    library  The chart library of the page: Vega, Vega-Lite and vega-embed as one script, bundled once for each version
    render   The page of a run rendered from its records, without using the network
    write    Write the HTML report of a run
"""
