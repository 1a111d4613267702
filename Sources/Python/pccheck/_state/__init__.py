"""State as a document and tensors: encoded, compared and put back."""
