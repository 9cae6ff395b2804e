"""A finished policy leaves the store: a folder with a model card, and if asked for its data and a push to the hub."""
