"""The store: artifacts with their manifests and shards, leases, and digests of the code that makes them."""
