"""The Hydra groups. Data, packaged so that an installed `sparring` finds it."""
