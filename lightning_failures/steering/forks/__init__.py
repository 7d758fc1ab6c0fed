"""Forks of one checkpoint: trainings that differ in the interventions alone, and their comparison.

Files, each importing only from those above it::

    callbacks     Lightning callbacks that turn a resumed training into a fork, or stop it at the first decision
    run           Pairs of forks from a training configuration: train them, grade them, compare them
    from_trainer  Forks of a live Trainer at the end of fit, and the checkpoint that they start from
"""
