"""The pictures of an analysis.

Files, each importing only from those above it::

    feature_views       Heat maps and feature attacks, made within a time limit and stored with the embeddings
    live_features       The penultimate features of the live model: heat maps and attacks
    sources             The inputs of the pictures of one analysis, and which trees are displayed
    counterfactuals     Counterfactual checks of the features and captions that pictures show
    features            Pictures of the features in displayed rules: images, heat maps, attacks and a caption
    sparse_cards        Cards of the features behind errors of a sparse layer
    classes_and_leaves  Pictures of the worst classes and of the leaves of their trees, and the thumbnails
    builder             Builds the gallery of an analysis, and computes the CV scores expected by chance
"""
