"""The folding engine: facts about a graph, a planner that decides, adapters that carry out.

algebra.py      double-double arithmetic, per-channel affine maps, one rounding     numpy only
facts.py        an immutable description of a graph: values, linears, norms          numpy only
moves/          one small unit a move: algebra, condition, source                    numpy only
plan.py         applies moves until nothing moves; gives edits and outcomes          numpy only
report.py       outcomes as rows, a table, JSON                                      numpy only
onnx_graph.py   ONNX IR -> facts; carries out the edits
torch_graph.py  ExportedProgram -> facts; carries out the edits
"""
