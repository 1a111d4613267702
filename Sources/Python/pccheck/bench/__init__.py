"""Measures PCcheck beside other ways to save a training state, on one machine, in one run.

    python -m pccheck.bench --directory /data --tool build/bin/pccheck --output bench-output

Needs the packages of the extra ``bench``; what is not installed is left out, and the report says
so. Nothing else of ``pccheck`` imports this.
"""
