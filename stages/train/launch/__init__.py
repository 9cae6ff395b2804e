"""The workers of a training step under Ray Train, and what they and the driver exchange."""
