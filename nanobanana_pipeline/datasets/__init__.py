"""Datasets: from recipes and what was generated to what others read."""
