"""What joins the callback to a running Trainer, one idea per file.

loaders       which dataset indices a batch holds
observer      which logits the model computed
images        from the user's normalised batch back to [0, 1]
monitors      the keys that other callbacks of the Trainer watch
placement     where files go
distributed   gathering rows and agreeing on errors between processes
"""
