"""Measures PCcheck beside other ways to save a training state, on one machine, in one run.

    python -m Benchmarks --directory /data --tool build/bin/pccheck --output bench-output

Run it in the folder of the project. ``Benchmarks/requirements.txt`` names what it compares with.
The report names what is not installed and leaves it out.
"""
