"""The command ``lightning-failures``.

Files, each importing only from those above it::

    demo    The main job on real input without a network: coloured digits, the packaged encoders, a real Trainer
    report  ``lightning-failures report`` and ``diff``: what runs left on disk, shown in a terminal, as HTML and as
    main    ``lightning-failures``: one command for each thing that people do with the package
"""

from lightning_failures.cli.main import main

__all__ = ["main"]
