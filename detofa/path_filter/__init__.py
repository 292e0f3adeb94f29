"""The path filter: ranks archs against others of the same budget, and prunes a space by it."""
