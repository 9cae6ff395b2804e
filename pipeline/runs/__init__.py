"""A run on disk: its record, its history, the measurements of its panel and the rules that watch them."""
