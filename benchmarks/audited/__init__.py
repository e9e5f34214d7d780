"""Networks that other tools fold, for benchmarks/audit_peers.py.

networks.py        ONNX graphs with random statistics, right ones and ones that a tool is known to fold wrongly
torch_networks.py  PyTorch modules, folded by PyTorch's own tools
"""
