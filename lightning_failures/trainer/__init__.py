"""What joins the callback to a running Trainer, one idea per file.

Files, each importing only from those above it::

    embedding_budget  What one validation may cost: how much of the time is spent, and so which examples are still
    image_space       From the images that the model saw back to [0, 1], which is what encoders and people look at
    index_recorder    Which dataset indices a batch holds: a recorder inside each evaluation loader
    logits_hook       Which logits the model computed: a look at the calls inside ``validation_step``, without a
    options           What must hold of the options of the callback, before anything is loaded
    ranks             Agreement between the processes of one run, over a gloo group of our own
    schedule          When to analyse, and what a resumed run goes on with
    batch_reader      Reading batches in the user's form, and single examples off a dataset outside of the loop
    penultimate       The live model's penultimate features, the input of the module that computes the logits
    grader            Grades of one evaluation loader: which examples are right, under which ids and classes
    evaluation_pass   One pass over one evaluation loader: its grades, and the embeddings of its images
    batch_grader      The one place that reads, names and grades an evaluation batch, for the callback and for doctor
    run_folder        Where the files of a run go, the same folder on every rank and after a resume
    metric_keys       The keys that other callbacks and schedulers of this Trainer monitor, and what to log while
    pictures          The pictures of an analysis
    epoch_end         What happens at the end of an evaluation: all processes analyse, the first one draws pictures
"""
