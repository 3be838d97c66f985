class LazyRows:
    pass
