"""Candidate captions and how well they describe a failure direction.

Files, each importing only from those above it::

    grammar     Candidate captions: a grammar for one class, and vocabularies for many
    candidates  The candidate captions of each class, embedded when they are first asked for
    scoring     How well each candidate caption describes a failure direction
    assign      Captions for the classes of an analysis: which classes are worth words, and what the words score
"""

from lightning_failures.captions.candidates import caption_source
from lightning_failures.captions.grammar import CaptionGrammar, CaptionVocabulary
from lightning_failures.captions.scoring import score_captions

__all__ = ["CaptionGrammar", "CaptionVocabulary", "caption_source", "score_captions"]
