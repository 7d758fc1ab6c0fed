"""The report of a run as one HTML file that needs no network and no server."""

from lightning_failures.html.render import prepare, render

__all__ = ["prepare", "render"]
