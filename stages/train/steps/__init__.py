"""What the plan names: the steps train, reference and logprobs."""
