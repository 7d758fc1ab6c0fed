"""Hooks of the callback into a running Trainer, on the evaluation side; private to the package.

Files, each importing only from those above it::

    dataset_attributes  Attributes of datasets: their length, their class names, and values for each example
    embedding_budget  The cost of a validation, and which share of the examples is embedded
    normalize_transforms  Mean and standard deviation of the normalising transforms of the usual libraries
    image_space       Undo the normalisation of the images that the model saw
    index_recorder    Record which dataset indices each evaluation batch holds, by a recorder inside each loader
    example_ids       The ids that users give to examples: each example needs one of its own
    example_names     What names an example beside its index: the digest of its image, and the name of its file
    logits_hook       Find the logits that the model computes inside ``validation_step``, without a second forward
    options           Options of the callback in groups, their former spellings, and the checks of all
    ranks             Communication between the processes of one run, over a gloo group of our own
    schedule          When to analyse, and the state that a resumed run continues with
    batch_reader      Read batches in the user's form
    batch_transfer    Give a batch that was read outside of the loop the steps of the loop's own batches
    readable          Examples that can be read and look like the others; one that does not is left out and named
    example_reader    Read examples of a dataset by index, through the same steps as the batches of the loop
    normalization_guard  Notice a normalisation that images do not have
    reading_ways      Read training examples as a validation would: the first of several ways that serves
    module_state      Keep what a step leaves behind in a module
    step_logits       Logits outside of the loop, by the module's own evaluation step
    kept_images       Small copies of some images of a stream, kept while they pass
    penultimate       The live model's penultimate features: the input of the module that computes the logits
    feature_store     Penultimate features on disk, by image and by the weights of the model
    readings          What scores and labels may mean, narrowed down batch by batch, decided once for a loader
    changed_images    Ask the live model about examples whose images were changed
    left_out          What cannot be graded in one pass over a loader: counted and named
    grading_facts     What the batches of a loader showed about scores and labels
    grader            Grades of one evaluation loader: which examples are right, under which ids and classes
    grading_notes     Notes of the report on what was taken for logits and labels, and doubts about it
    evaluation_pass   One pass over one evaluation loader: its grades, and the embeddings of its images
    pinned_slices     Checks of pinned slices in an evaluation: on all graded examples, with the embeddings of the pass
    model_features    What methods on the features of the live model need beside those of the evaluated examples
    reference_embeddings  The embeddings that the directions are standardised with
    method_values     The values that each method is fitted on, for the classes that this process owns
    batch_grader      The one place that reads, names and grades an evaluation batch, for the callback and for doctor
    error_policy      Errors as warnings in a training run; messages that are emitted once
    caption_sources   Where the candidate captions come from: a vocabulary, or captions of the examples
    open_encoders     The encoders of a run, the same on every rank
    run_folder        The folder for the files of a run, the same on every rank and after a resume
    closing           The last words of a training: where the report is, and what was found
    metric_keys       The metrics that other callbacks and schedulers monitor, and the values logged for them
    pictures          The pictures of an analysis
    held_out_parts    The parts of a validation set while interventions are on, with decision values
    late_doubts       Doubts that come after an analysis: the accuracy that the module logs in its own epoch end
    epoch_end         The end of an evaluation: all ranks analyse, rank 0 draws pictures and writes files
"""
