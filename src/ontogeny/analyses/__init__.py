"""The analyses, a folder each: measure, figure, settings, caption, declaration.

    NAME/declaration.py  ANALYSIS: what it reads and makes, its figures, what it costs
    NAME/settings.py     its section of the configuration, if it has keys
    NAME/measure.py      the function that makes its tables
    NAME/figure.py       the function that draws them; NAME.rst is the caption
    NAME/numbers.py      what of it goes into summary.json

Analyses never import each other; what two of them need lives in ontogeny.features.
"""
