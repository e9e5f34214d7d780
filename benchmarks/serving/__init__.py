"""What serve_peers.py measures: the networks, the servers, their CPU time, and the table."""
