"""Is what was made right, and what it is made with: exports, merges, libraries."""
