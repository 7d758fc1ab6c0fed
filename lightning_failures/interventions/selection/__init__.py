"""Selection of examples of a pool.

Files, each importing only from those above it::

    candidates       Candidates of a pool, ranked class by class, and the picks among them
    diverse          Diverse selection: rows that lie far from each other
    near_duplicates  Detection of near-duplicates: images whose embeddings have nearly the same direction
    picker           Streaming selection of examples of every class from a pool of any size
"""
