"""How a policy is loaded, adapted and run to score responses."""
