"""HomoDistil: a student that starts as its teacher, and is narrowed while it is distilled."""
