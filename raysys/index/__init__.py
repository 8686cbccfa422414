"""FAISS wrapped once, filters, behaviour rows, and the immutable snapshot."""
