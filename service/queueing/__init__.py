"""What waits, and how it is run together.

batcher.py      the workers and the queue; backlog.py: what waits for a model; batches.py: one batch
admission.py    who may wait; deadlines.py: who has waited too long
"""
