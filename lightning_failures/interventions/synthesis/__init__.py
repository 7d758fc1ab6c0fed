"""Generation of images from failure modes, and their ledger.

Files, each importing only from those above it::

    image_checks  Checks of generated images before they join the training set
    ledger        The ledger of generated images: origins, reasons for dropping, PNG files; crash-safe
    dataset       Generated images as training examples, in the form of the user's own examples
    generate      Generation of images of one class: generate, check, keep or drop; resumable
"""
