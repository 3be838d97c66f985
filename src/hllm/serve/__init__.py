"""A run as a service: REST, a page, live sessions. Needs the extra: pip install 'hllm[serve]'."""
