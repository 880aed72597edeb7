"""What the Python suites share: the raw API, raw sockets, the host's side of things, and a server to own."""
