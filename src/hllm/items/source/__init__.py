"""Where item vectors come from during training: the parts of the model that belong to items."""
