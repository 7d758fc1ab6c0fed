"""What joins the callback to a running Trainer, one idea per file.

loaders       which dataset indices a batch holds
observer      which logits the model computed
images        from the user's normalised batch back to [0, 1]
reading       the user's form of a batch; single examples off a dataset
lenses        an encoder with its cache
collector     one pass over one loader: grades and embeddings
monitors      the keys that other callbacks of the Trainer watch
schedule      when to analyse, and what a resumed run goes on with
placement     where files go
pictures      which pictures an analysis asks for
drawing       the pictures of an analysis, and what else is done for the last one only
explaining    the analysis with its pictures and files, on the first process
isolation     random numbers that are given back
distributed   gathering rows and agreeing on errors between processes
"""
