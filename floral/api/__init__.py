"""The Python interface, for notebooks and scripts: train a run, and read results as polars frames.

`import floral` offers its names, such as `floral.run` and `floral.load`.
"""
