"""The wire: what is exchanged between batchrun and an endpoint, and the client that exchanges it."""
