"""Accuracy: data sets x recipes x seeds x training-set sizes, one row at a time, resumable."""
