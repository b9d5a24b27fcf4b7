"""The analyses, one folder each: measure, figure, settings, caption, declaration.

    NAME/declaration.py  ANALYSIS: what it reads and makes, its figures, its cost
    NAME/settings.py     its section of the configuration, if it has keys
    NAME/measure.py      the function that makes its tables
    NAME/figure.py       the function that draws them; NAME.rst is the caption
    NAME/numbers.py      its part of summary.json

Analyses never import each other; code that two of them need belongs in ontogeny.features.
"""
