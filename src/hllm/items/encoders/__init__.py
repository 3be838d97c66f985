"""Item encoders: language models and controls, from texts to vectors."""
