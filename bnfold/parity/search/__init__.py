"""The search for the worst input, within the range of the data.

seeking.py         both searches, and the verdict          worst.py   the records
by_gradient.py     ascent in float64, by torch             ascent_torch.py   its steps
by_coordinates.py  without torch, or where it is too slow  coordinate.py     its steps
"""
