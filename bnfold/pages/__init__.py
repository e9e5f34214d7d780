"""Pages for a person to read in a browser: one self-contained file each, no network, no framework.

inspection.py   what folds, with the graph before and after
drawing.py      a graph as SVG            layout.py   where its parts stand
text.py         names that are safe to show
"""
