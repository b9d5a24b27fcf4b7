# The experiment compared with its replicates. The Snakefile includes itself for their rules; the
# comparisons and their figures are declared in ontogeny/stages.py.


rule replicates:
    input:
        figures(["replicates"]) if REPLICATES else [],
    localrule: True


rule controls:
    input:
        figures(["controls"]) if REPLICATES else [],
    localrule: True
