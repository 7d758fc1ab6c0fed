"""Hooks into a running Trainer that change what it trains on; private to the package.

Files, each importing only from those above it::

    checkpoint      State of the interventions in checkpoints: its fields, and how they are validated on reading
    identity        Which intervention of a checkpoint is which configured one, whatever their order
    protocol        The interfaces of the callback that interventions, forks and verdicts rely on
    former_files    Copies of the files of interventions, for a run that must not write where another one does
    head_only       Training of the last layer alone, in the epochs in which an intervention asks for it
    class_order     Pools whose classes have the names of the training set, but other numbers
    loader_patch    Supported training loaders, and the sampler and dataset of the interventions inside them
    record          Decisions, frozen slice, trend and verdict of the interventions, for reports and checkpoints
    forks           Forks of one checkpoint: trainings that differ in the interventions alone, and their comparison
    lottery         Verdict while a training runs: half of the classes, chosen at random, are an untreated control
    rollback        Automatic rollback of a training whose accuracy fell after an intervention began
    training_view   Deterministic, ordered reading of a training set or a pool, with decision values and cache keys
    early_answers   The answers of the model of an early epoch on training sets and pools
    last_layer      The last layer of the model: what must hold to refit it, its features, and its new weights
    sample_features  Penultimate features of a fixed sample of the training set
    new_heads       New last layers that interventions have decided on, until they take effect
    round           A round of decisions on a Trainer: judged images, suspected labels and pool picks
    training_judge  Decision values of the whole training set after an analysis, and the round that uses them
    controller      The interventions of a training: which are due, what they decide, when it takes effect
    feature_access  The penultimate features of the live model, as the callback gives them to users and to methods
"""
