"""One page for any set of runs: `python -m experiments.report RUNS... [--out=report.html]`.

The page is one HTML file that needs nothing else: style, script, figures and the points of every
curve are inside it. JAX is imported only where runs share a config, for the intervals of their
means.
"""
