"""The process, or several of them, from start to stop.

server.py       uvicorn, signals, drain; listener.py: its sockets; lifecycle.py: starting, ready, draining, closed
supervisor.py   starts and restarts workers; worker.py: one of them; peers.py: how they talk
heartbeat.py    which of them hangs
"""
