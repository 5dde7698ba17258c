"""The live decoder: source, decoder, publisher, and the daemon that joins them."""
