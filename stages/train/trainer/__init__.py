"""The transformers Trainer with a loss of pairs, its arguments and its measurements."""
