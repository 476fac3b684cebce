"""What SAM buys and what it costs: one script a question, and lib/, what they share.

Each runs as a module from the root of the repository, as in
`python -m benchmarks.accuracy.flatness --smoke`.
"""
