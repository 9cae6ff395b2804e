"""What an iteration does: sample, annotate, train, evaluate. No stage imports another."""
