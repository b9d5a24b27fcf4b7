# The experiment beside its replicates, whose rules the Snakefile takes from itself: the comparison
# and its figure are declared in ontogeny/stages.py.


rule replicates:
    input:
        figures(["replicates"]) if REPLICATES else [],
    localrule: True
