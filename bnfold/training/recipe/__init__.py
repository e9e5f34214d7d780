"""What a recipe says.

parts.py     its tables, and every key of them      overrides.py  `--set key=value`
reading.py   from TOML to the tables, strictly
"""

from __future__ import annotations

from bnfold.training.recipe.parts import Augmentation, Data, Network, Optimizer, Recipe, Train
from bnfold.training.recipe.reading import load_recipe

__all__ = ["Augmentation", "Data", "Network", "Optimizer", "Recipe", "Train", "load_recipe"]
