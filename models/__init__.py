"""The science: tensors in, tensors out. Imports no orchestration library."""
