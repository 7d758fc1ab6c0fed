"""Images generated from the captions of failures.

Files, each importing only from those above it::

    image_checks  What a generated image must be before anything is trained on it
    ledger        The ledger of generated images: where each came from, which were dropped and why, and the PNG
    dataset       Generated images as training examples: a dataset over the ledger, in the form of the user's own
    generate      Filling an order for images of one class: generate, check, keep or drop, until there are enough;
"""
