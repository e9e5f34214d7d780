"""The norm study: the network of a recipe trained many times over, to see what batch norm does for it and what not.

experiments.py  what is compared          runs.py      the trainings, side by side in processes
findings.py     one sentence for each     page.py      curves and sentences for a person to read
study.py        all of it
"""

from __future__ import annotations

from bnfold.training.study.study import Study, run_study

__all__ = ["Study", "run_study"]
