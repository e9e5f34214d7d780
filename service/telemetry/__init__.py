"""What the server tells of itself.

metrics.py      Prometheus; meter.py: what is counted; cells.py: where; exposition.py: its names
stats.py        Triton's statistics
watch.py        request ids, access log; logs.py: the log; traces.py: OpenTelemetry
"""
