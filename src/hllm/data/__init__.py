"""From anyone's tables to packed sequences: schema, vocabulary, filters, splits, dataset, loader."""
