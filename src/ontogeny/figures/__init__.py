"""The figures: each module has one `draw`, which turns tidy tables into a PDF, a PNG and a CSV."""
