"""Hooks into a running Trainer that change what it trains on; private to the package.

Files, each importing only from those above it::

    appending      What joins the training set: the sources of examples, whether they fit, and which plans still
    checkpoint     What the interventions keep in checkpoints, and how it is read again: every value checked, none
    forking        What makes a fork of a resumed training: seeds, decisions that take effect or not, and where it
    head_only      Training of the last layer alone, for as long as an intervention asks for it
    loader_patch   Which training loaders an intervention can work through, and the place of its sampler and
    forks          Forks of one checkpoint: trainings that differ in the interventions alone, and what comes out of
    rollback       Automatic rollback: a training whose accuracy fell after an intervention began goes back to
    training_view  Examples seen as the validation set is: every one once, in order, through transforms that do not
    fork_at_end    Forks at the end of a training that is at hand, instead of one that is made anew from its
    round          What interventions may ask for while they decide: judged images, suspected labels, picks from a
    lottery        Verdicts while a training runs: by a lottery over classes, or by forks of it at its end
    controller     From a report to the next epoch: which interventions are due, what they decide, and what became
"""
