"""AutoDistil: students that share the weights of one trained model."""
