"""Studies: several arms and seeds as one plan, compared prompt by prompt (`python -m scripts.study --help`)."""
