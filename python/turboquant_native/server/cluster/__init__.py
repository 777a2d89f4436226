"""The server as a Ray Serve application: replicas on several machines behind one address (extra `[ray]`)."""
