"""The zoo: well-known networks with random statistics, folded by bnfold and by its peers. See fold_zoo.py."""
