"""The report of a run as one HTML file that needs no network and no server.

Files, each importing only from those above it::

    charts   The charts of the page: what altair makes of a report, as plain Vega-Lite. Colours come from the
    figures  Every number of the page is read from a record by its path, and says so in the page
    images   Images as text, and no more of them than a page should carry
    tree     A failure tree as an outline: every node with what leads to it, parents around their children
    browse   The examples to look through: the rows behind the table that the page filters, sorts and turns
    page     What the page shows, chosen and bounded: the model behind the templates. Numbers stay where they are,
    render   From the records of a run to one page of HTML: nothing is read from disk, asked of the network, or run
    write    Write the HTML report of a run
"""
