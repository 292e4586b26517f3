"""Bilevel data reweighting: tensors in, tensors out. Private to `curator`; no files, no SQL."""
