"""The pictures of an analysis.

Files, each importing only from those above it::

    feature_views       Heat maps and attacks of features, made within a time and kept beside the embeddings
    sources             What pictures are drawn from, and which groups they show
    features            What the features look for that rules mention: images, heat maps, attacks and a caption for
    classes_and_leaves  Which pictures an analysis asks for: extreme images of the worst classes, and what their
    painter             The pictures of one analysis, and what else is worth its time only once: what chance would
"""
