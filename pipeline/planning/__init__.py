"""From a configuration to the steps of a run, and what they cost."""
