"""The wire: what travels between batchrun and an endpoint, and the client that moves it."""
