"""Hooks into a running Trainer that change what it trains on; private to the package.

Files, each importing only from those above it::

    checkpoint     State of the interventions in checkpoints: its fields, and how they are validated on reading
    protocol       The interface of the callback that forks and verdicts rely on
    appending      What joins the training set: the sources of examples, whether they fit, and which plans still hold
    head_only      Training of the last layer alone, for as long as an intervention asks for it
    loader_patch   Supported training loaders, and the sampler and dataset of the interventions inside them
    forks          Forks of one checkpoint: trainings that differ in the interventions alone, and their comparison
    lottery        Verdict while a training runs: half of the classes, chosen at random, are an untreated control
    rollback       Automatic rollback of a training whose accuracy fell after an intervention began
    training_view  Deterministic, ordered reading of a training set or a pool, with decision values and cache keys
    round          What an intervention can ask for while it decides: judged images, suspected labels, pool picks
    controller     From a report to the next epoch: which interventions are due, and what they decide
"""
