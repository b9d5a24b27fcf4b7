# The experiment beside its replicates, whose rules the Snakefile takes from itself: the comparisons
# and their figures are declared in ontogeny/stages.py.


rule replicates:
    input:
        figures(["replicates"]) if REPLICATES else [],
    localrule: True


rule controls:
    input:
        figures(["controls"]) if REPLICATES else [],
    localrule: True
