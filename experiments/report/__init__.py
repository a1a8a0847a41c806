"""One page for any set of runs: `python -m experiments.report RUNS... [--out=report.html]`.

The page is one HTML file that needs nothing else: style, script, figures and the points of every
curve are inside it. Only the standard library is used, so a report takes a second, not an import of
JAX, and can be made where only the runs are.
"""
