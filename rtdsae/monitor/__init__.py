"""The web page: what a daemon publishes, to be watched on loopback. Its own process, a subscriber like any other."""
