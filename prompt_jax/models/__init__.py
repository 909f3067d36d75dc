"""Frozen language models as pure functions of their parameters.

Shapes are written with these letters everywhere in the project:

    B batch        S source tokens   T target (or any) tokens   P prompt length
    L layers       D model width     H heads                    K head width
    F feed-forward V vocabulary      E ensemble members         C label classes
"""
