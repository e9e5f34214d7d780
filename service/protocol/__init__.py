"""The Open Inference Protocol v2 as both doors speak it, REST and gRPC.

requests.py         what a request may say, checked once
tensors.py          JSON and bytes to arrays; outputs.py: and back; classification.py: as classes
metadata.py         what a model says of itself; model_config.py: in Triton's words
"""
